#!/usr/bin/env bash
# torch.export takes a module in training mode that holds one batch norm in two places; run_decompositions({}), which makes
# the exported program functional, then ends in an AssertionError of torch's own tracing. In evaluation mode, or with two
# batch norms, both steps work.
#
# torch 2.14.1. A layer that is called twice is usual in shared or recurrent blocks.
#
# Seen:  training, one in two places: AssertionError: expected compiled_fn to be GraphModule, got <class 'function'>
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 torch==2.14.1
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn


def outcome(module):
    program = torch.export.export(module, (torch.randn(4, 3),))
    try:
        program.run_decompositions({})
    except AssertionError as error:
        return f"{type(error).__name__}: {error}"
    return "works"


norm = nn.BatchNorm1d(3)
shared, apart = (nn.Sequential(norm, nn.Linear(3, 3), last) for last in (norm, nn.BatchNorm1d(3)))
found = [outcome(shared.train()), outcome(apart.train()), outcome(shared.eval())]
print("training, one in two places:", found[0], "  two:", found[1], "  evaluation:", found[2])
assert "expected compiled_fn to be GraphModule" in found[0], "this has changed"
assert found[1:] == ["works", "works"]
PYTHON
