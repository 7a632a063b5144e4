#!/usr/bin/env bash
# A network that leaves its norm out where the batch is one, exported with a batch that may be Dim("batch", min=1): the
# program's range_constraints say 1 to infinity, it takes a batch of one, and computes the branch of larger ones.
#
# torch 2.14.1; the same without min (0 to infinity), after save and load, and with strict=True. With Dim.AUTO the same
# graph's range is 2 to infinity, which is true, but its module() takes a batch of one all the same and refuses nothing.
# `if x.shape[0] > 1` is usual around norms, which a single image makes constant.
#
# Seen:  Dim("batch", min=1): range [1, int_oo]   Dim.AUTO: [2, int_oo]   a batch of one, off by 1.0 in both, of two:
#        0.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 torch==2.14.1
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn
from torch.export import Dim, export


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)
        self.norm.running_mean.fill_(1)

    def forward(self, x):
        x = self.linear(x)
        return self.norm(x) if x.shape[0] > 1 else x


def off(program, network, count):
    x = torch.randn(count, 3)
    return float((program.module()(x) - network(x)).detach().abs().max())


torch.manual_seed(0)
network = Network().eval()
for name, dim, lowest in (("min=1", Dim("batch", min=1), 1), ("no min", Dim("batch"), 0), ("AUTO", Dim.AUTO, 2)):
    program = export(network, (torch.randn(8, 3),), dynamic_shapes=({0: dim},))
    (extent,) = program.range_constraints.values()
    one, two = off(program, network, 1), off(program, network, 2)
    print(f"{name}: range [{extent.lower}, {extent.upper}]   a batch of one: off by {one:.1f}, of two: {two:.1f}")
    assert int(extent.lower) == lowest, "this has changed"
    assert two == 0
    assert one > 0.5, "this has changed"
PYTHON
