#!/usr/bin/env bash
# torch.export of a gradient reversal layer, an autograd Function whose backward pass is -g, gives a program with the
# same outputs and the gradient +g: the backward pass isn't kept, and the operators of the forward pass are
# differentiated instead. Adversarial training on such a program helps what it should hinder. A hook on a tensor inside
# is left out in the same way.
#
# torch 2.14.1, before run_decompositions({}) and after. torch.compile keeps the backward pass. strict=True, before,
# gives no gradient at all.
#
# Seen:  reversal: torch -1.0, torch.compile -1.0, exported 1.0   a hook that multiplies by 7: torch 7.0, exported 1.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 torch==2.14.1
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch import nn


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return -gradient


class Reversal(nn.Module):
    def forward(self, x):
        return Reverse.apply(x)


class Hooked(nn.Module):
    def forward(self, x):
        y = x.clone()
        y.register_hook(lambda gradient: 7 * gradient)
        return y


def gradient(module):
    x = torch.ones(2, requires_grad=True)
    module(x).sum().backward()
    return float(x.grad[0])


def exported(module, functional=False):
    program = torch.export.export(module, (torch.ones(2, requires_grad=True),))
    return gradient((program.run_decompositions({}) if functional else program).module())


eager, compiled = gradient(Reversal()), gradient(torch.compile(Reversal(), backend="aot_eager"))
programs = [exported(Reversal(), functional) for functional in (False, True)]
hooked = gradient(Hooked()), exported(Hooked())
print(f"reversal: torch {eager}   torch.compile {compiled}   exported {programs}   hook: torch, exported {hooked}")
assert (eager, compiled, hooked[0]) == (-1, -1, 7)
assert programs == [1, 1], "this has changed"
assert hooked[1] == 1, "this has changed"
PYTHON
