#!/usr/bin/env bash
# torch.export of a module that uses torch.utils.checkpoint with use_reentrant=True gives a program with the same outputs
# and no gradient: the checkpoint's own forward pass, which runs under no_grad, is what is recorded. In torch itself the
# module's gradients are right. Nothing in the outputs can tell.
#
# torch 2.14.1. use_reentrant=True was the default for years, so trained networks are full of it. use_reentrant=False is
# exported with its gradients.
#
# Seen:  outputs equal True   torch's gradient 0.41   the program's: element 0 of tensors does not require grad
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet numpy==2.4.6 torch==2.14.1
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from torch.utils.checkpoint import checkpoint


class Network(torch.nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.stem, self.block, self.reentrant = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3), reentrant

    def forward(self, x):
        return checkpoint(self.block, self.stem(x), use_reentrant=self.reentrant).sum(1)


def compare(reentrant):
    torch.manual_seed(0)
    network, x = Network(reentrant), torch.randn(4, 3)
    program = torch.export.export(network, (x,)).module()
    equal = torch.equal(program(x), network(x))
    network(x).sum().backward()
    expected = float(network.stem.weight.grad.abs().max())
    network.zero_grad()  # the program has the network's own parameters
    try:
        program(x).sum().backward()
    except RuntimeError as error:
        return equal, expected, str(error)
    return equal, expected, float(dict(program.named_parameters())["stem.weight"].grad.abs().max())


equal, expected, found = compare(reentrant=True)
print(f"outputs equal {equal}   torch's gradient {expected:.2f}   the program's: {found}")
assert equal and expected > 0.1
assert "does not require grad" in str(found), "this has changed"
equal, expected, found = compare(reentrant=False)
assert equal, "without re-entrance the outputs are equal"
assert abs(found - expected) < 1e-6, "and so are the gradients"
PYTHON
