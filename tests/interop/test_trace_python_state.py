"""What a module keeps in Python is refused where a later call reads it, and accepted where none does."""

import copy
import random
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import interop
from byol_jax.errors import UnsupportedModuleError


class Keeps(nn.Module):
    """A linear layer, then `use` of its output [N, 3], which may read and write `kept`."""

    def __init__(self, kept, use):
        super().__init__()
        self.linear = nn.Linear(48, 3)
        self.register_buffer("centre", torch.zeros(3))
        self.kept, self.use = kept, use

    def forward(self, x):
        return self.use(self, self.linear(x.flatten(1)))


def every_fourth_call(self, y):
    out = y - self.centre
    if self.training:
        if self.kept % 4 == 0:
            self.centre.mul_(0.5).add_(0.5 * y.detach().mean(0))
        self.kept += 1
    return out


def first_call_alone(self, y):
    if self.training and not self.kept:
        self.centre.copy_(y.detach().mean(0))
        self.kept = True
    return y - self.centre


def rising_rate(self, y):
    if self.training:
        self.kept["calls"] += 1
        y = F.dropout(y, min(0.5, self.kept["calls"] / 1000))
    return y


def later(self, y):
    self.kept.calls += 1
    return torch.tanh(y) if self.kept.calls > 20 else y


def average_in_a_list(self, y):
    out = y + self.kept[0]
    self.kept[0] = 0.5 * self.kept[0] + 0.5 * y.detach().mean(0)
    return out


def average_from_none(self, y):
    """On one input again and again it would stay where it is."""
    mean = y.detach().mean(0)
    self.kept = mean if self.kept is None else 0.9 * self.kept + 0.1 * mean
    return y - self.kept


def queue(self, y):
    out = y - torch.stack([*self.kept]).mean(0) if self.kept else y
    self.kept.append(y.detach().mean(0))
    return out


def buffer_from_none(self, y):
    self.later = y.detach().mean(0) if self.later is None else 0.9 * self.later + 0.1 * y.detach().mean(0)
    return y - self.later


def with_empty_buffer():
    module = Keeps(None, buffer_from_none)
    module.register_buffer("later", None)
    return module


def average_in_an_object(self, y):
    out = y + self.kept.mean
    self.kept.mean = 0.5 * self.kept.mean + 0.5 * y.detach().mean(0)
    return out


def own_generator(self, y):
    return torch.zeros_like(y) if self.kept.random() < 0.05 else y


EVERY, OTHER = "it changes with every call", "another call computes something else"
READ = {
    "a counter": (lambda: Keeps(0, every_fourth_call), "kept", EVERY),
    "a counter in a dict": (
        lambda: nn.Sequential(nn.Flatten(), Keeps({"calls": 0}, rising_rate)),
        r"1\.kept",
        EVERY,
    ),
    "a counter in an object": (lambda: Keeps(SimpleNamespace(calls=0), later), "kept", EVERY),
    "a flag": (lambda: Keeps(False, first_call_alone), "kept", OTHER),
    "a list": (lambda: Keeps([torch.zeros(3)], average_in_a_list), "kept", OTHER),
    "a tensor once there is one": (lambda: Keeps(None, average_from_none), "kept", OTHER),
    "a buffer once there is one": (with_empty_buffer, "later", OTHER),
    "a queue": (lambda: Keeps(deque(maxlen=3), queue), "kept", OTHER),
    "a tensor in an object": (lambda: Keeps(SimpleNamespace(mean=torch.zeros(3)), average_in_an_object), "kept", ""),
    "Python's generator": (lambda: Keeps(random.Random(0), own_generator), "kept", EVERY),
    "NumPy's generator": (lambda: Keeps(np.random.default_rng(0), own_generator), "kept", EVERY),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", READ)
def test_what_a_later_call_reads_is_refused_by_name(kind):
    make, attribute, why = READ[kind]
    module = make()
    with pytest.raises(UnsupportedModuleError, match=rf"leaves {attribute} for its next call, and {why}.*register_buf"):
        interop.from_torch_module(module, image_size=4, verify=False)
    assert not interop.check(module, image_size=4).supported


@pytest.mark.parametrize("kind", ["a list", "a tensor in an object"])
def test_nothing_is_left_in_what_was_refused(kind):
    module = READ[kind][0]()
    assert not interop.check(module, image_size=4).supported
    kept = module.kept[0] if kind == "a list" else module.kept.mean
    assert type(kept) is torch.Tensor
    assert kept.tolist() == [0, 0, 0]


def table(self, y):
    if self.kept is None or self.kept.dtype != y.dtype:
        self.kept = torch.linspace(0, 1, y.shape[1], dtype=y.dtype)
    return y + self.kept


def longest_table(self, y):
    if self.longest < y.shape[1]:
        self.longest, self.kept = y.shape[1], torch.linspace(0, 1, y.shape[1])
    return y + self.kept.to(y.dtype)


def last_output(self, y):
    self.kept = y
    return y


def log(self, y):
    self.kept.append(y.mean())
    return y


def last_shape(self, y):
    self.kept = tuple(y.shape)
    return y


def with_length():
    module = Keeps(None, longest_table)
    module.longest = 0
    return module


HARMLESS = {
    "a table of the first call": lambda: Keeps(None, table),
    "a table and its length": with_length,
    "the last output": lambda: Keeps(None, last_output),
    "all outputs": lambda: Keeps([], log),
    "the last shape": lambda: Keeps((2, 3), last_shape),
}


@pytest.mark.parametrize("kind", HARMLESS)
def test_what_no_later_call_reads_is_no_reason(kind):
    module = HARMLESS[kind]()
    before = copy.deepcopy(module.kept)
    encoder = interop.from_torch_module(module, image_size=4, verify=False)
    assert module.kept == before
    images = np.random.default_rng(0).random((5, 4, 4, 3)).astype(np.float32)
    ours, _ = encoder.apply(encoder.init(None, (4, 4, 3)), images, train=True, hidden_layer=-1)
    with torch.no_grad():
        np.testing.assert_allclose(ours, module(torch.from_numpy(images.transpose(0, 3, 1, 2))), atol=1e-5)


class Draws(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return x if self.training and self.draw() < 0.1 else 2 * x


@pytest.mark.parametrize(("generator", "draw"), [("Python's random", random.random), ("np.random", np.random.rand)])
def test_a_draw_of_pythons_is_refused(generator, draw):
    """Its number would be the same for ever. One that is thrown away is refused with the others: nothing shows it."""
    module = nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(48, 3), Draws(draw)))
    (problem,) = interop.check(module, image_size=4).problems
    assert f"1.1 decides by {generator}, whose numbers" in problem
    assert "torch.rand" in problem


def test_a_hook_that_the_code_registers_is_refused_and_taken_off():
    def hooked(self, y):
        self.linear.register_full_backward_hook(lambda *rest: None)
        return y

    module = Keeps(None, hooked)
    (problem,) = interop.check(module, image_size=4).problems
    assert "linear gets a hook when it runs" in problem
    assert not module.linear._backward_hooks
