#!/usr/bin/env bash
# run_decompositions({}) makes an exported program functional: what it writes is said in
# graph_signature.buffers_to_mutate. Of InstanceNorm2d with running statistics, in training, it says that nothing is
# written, and leaves one operator, aten.instance_norm, that writes them. Who runs the graph elsewhere by its signature
# trains with statistics that stand still.
#
# torch 2.14.1. BatchNorm2d's are told apart as they should be, and so are InstanceNorm2d's by run_decompositions(),
# whose default table takes the operator apart.
#
# Seen:  batch norm: writes 3 buffers   instance norm: {}; and yet running_mean 0.0 became 0.3   default table: writes 2
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 torch==2.14.1
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn

x = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(0)) + 3


def functional(module, *table):
    return torch.export.export(module.train(), (x,)).run_decompositions(*table)


def written(program):
    return sorted(program.graph_signature.buffers_to_mutate.values())


batch = functional(nn.BatchNorm2d(2), {})
instance = functional(nn.InstanceNorm2d(2, track_running_stats=True), {})
default = functional(nn.InstanceNorm2d(2, track_running_stats=True))
operators = [str(node.target) for node in instance.graph.nodes if node.op == "call_function"]
module = instance.module()
module(x)
mean = float(module.running_mean.mean())
print("batch norm", written(batch), "  instance norm", written(instance), operators, f"mean {mean:.1f}", end="   ")
print("default table", written(default))
assert written(batch) == ["num_batches_tracked", "running_mean", "running_var"]
assert written(default) == ["running_mean", "running_var"]
assert (written(instance), operators) == ([], ["aten.instance_norm.default"]), "this has changed"
assert mean > 0.2, "the operator wrote nothing: this has changed"
PYTHON
