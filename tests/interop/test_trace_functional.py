"""Writes in place become new values by rewriting, exactly as in torch's own second pass; the rest is left to it."""

import jax
import numpy as np
import pytest
import torch
from torch import nn

import interop
from interop.trace import export

pytestmark = pytest.mark.slow


class Calls(nn.Module):
    """A linear layer and a buffer, and whatever a test does with their values."""

    def __init__(self, forward):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)
        self.register_buffer("kept", torch.arange(6.0))
        self.body = forward

    def forward(self, x):
        return self.body(self, self.linear(x))


def chained(self, y):
    y += 1
    z = y.mul_(2)
    z.sub_(3)
    return y * z.relu_()


def views_of_what_is_written(self, y):
    whole, part = y.view(-1, 3, 2), y[:, :2]
    y.sigmoid_()
    return torch.cat([whole.flatten(1), part], 1)


def chunks(self, y):
    first, second, last = y.sigmoid().chunk(3, -1)
    return torch.cat([first * second, last], 1)


def view_of_a_view(self, y):
    turned = y.view(-1, 3, 2).transpose(1, 2)
    column = turned[:, 0].unsqueeze(1)
    y.tanh_()
    return (turned + column).flatten(1)


def copy_that_no_write_reaches(self, y):
    copied = y.view(-1, 3, 2).transpose(1, 2).reshape(-1, 6)
    y.exp_()
    return copied + y


def contiguous_of_what_lies_so(self, y):
    same = y.contiguous()
    y.exp_()
    return same + y


def contiguous_copy(self, y):
    copied = y.view(-1, 3, 2).transpose(1, 2).contiguous()
    y.exp_()
    return copied.flatten(1) + y


def write_through_a_view(self, y):
    y[:, :3] += 1
    y.view(-1, 3, 2)[:, 0].mul_(3)
    return y


def detached(self, y):
    other = y.detach()
    y.sigmoid_()
    return y * other


def buffers(self, y):
    if self.training:
        self.kept.mul_(0.5)
        self.kept.add_(y.detach().mean(0))
    return y + self.kept


def buffer_replaced(self, y):
    if self.training:
        self.kept = self.kept * 0.9 + y.detach().mean(0)
    return y + self.kept


def buffer_copied(self, y):
    before = self.kept * 1
    if self.training:
        self.kept.copy_(y.detach()[0])
    return y + self.kept - before


def narrower(self, y):
    whole = torch.zeros_like(y, dtype=torch.float64)
    whole += y
    return (whole + 1).to(y.dtype)


def truth_in_place(self, y):
    return y + y.detach().clone().gt_(0)


def another_shape_in_place(self, y):
    y = y.unsqueeze(1).clone()
    return y.squeeze_(1) * 2


def laid_otherwise(self, y):
    image = y.view(-1, 3, 2, 1).expand(-1, 3, 2, 2).clone()
    other = image.contiguous(memory_format=torch.channels_last)
    image.exp_()
    return (image + other).flatten(1)


def normed(self, y):
    y = self.norm(y).relu_()
    return y.reshape_as(self.linear(y)) + self.norm(y)


def sizes(self, y):
    return y.reshape(y.shape[0], 2, 3).add_(y.shape[1]).flatten(1)


def items(self, y):
    largest, _ = y.view(-1, 2, 3).max(2)
    return torch.cat([y.mul_(2), largest], 1)


REWRITTEN = [chained, chunks, views_of_what_is_written, view_of_a_view, contiguous_of_what_lies_so, detached, buffers]
REWRITTEN += [buffer_replaced, buffer_copied, normed, items]
LEFT_TO_TORCH = [copy_that_no_write_reaches, contiguous_copy, write_through_a_view, narrower, sizes]
LEFT_TO_TORCH += [truth_in_place, another_shape_in_place, laid_otherwise]
LAYERS = [
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.LazyLinear(5)),
    nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False, track_running_stats=False), nn.Hardswish(True)),
    nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ELU(inplace=True), nn.Dropout(0.0), nn.Unflatten(1, (2, 4))
    ),
]


def traced(module, image, monkeypatch, *, by_torch):
    used = []

    def watch(*arguments):
        used.append(None if by_torch else original(*arguments))
        return used[-1]

    original = export._without_writes
    with monkeypatch.context() as patch:
        patch.setattr(export, "_without_writes", watch)
        return interop.from_torch_module(module, example_input=image), used


def programs(encoder):
    """What JAX makes of each layer's values, new statistics and gradients, in both modes."""
    facts = encoder.facts.traced
    variables = encoder.init(jax.random.key(0), facts.input_shape)
    x = np.zeros((4, *facts.input_shape), np.float32)

    def run(params, x, layer, train):
        def total(params):
            given = variables._replace(params=params)
            features, new = encoder.apply(given, x, train=train, hidden_layer=layer, key=jax.random.key(0))
            return features.sum(), new

        return jax.grad(total, has_aux=True)(params)

    layers = [-1, *dict.fromkeys(name for name in facts.traced.train.hidden)]
    lower = jax.jit(run, static_argnums=(2, 3)).lower
    return {
        (layer, mode): lower(variables.params, x, layer, mode).as_text() for layer in layers for mode in (True, False)
    }


@pytest.mark.parametrize("forward", [*REWRITTEN, *LEFT_TO_TORCH], ids=lambda forward: forward.__name__)
def test_it_is_what_torch_makes_of_it(forward, monkeypatch):
    example = torch.rand(3, 6)
    ours, used = traced(Calls(forward), example, monkeypatch, by_torch=False)
    theirs, _ = traced(Calls(forward), example, monkeypatch, by_torch=True)
    assert {form is not None for form in used} == {forward in REWRITTEN}
    assert programs(ours) == programs(theirs)


@pytest.mark.parametrize("number", range(len(LAYERS)))
def test_layers_are_what_torch_makes_of_them(number, monkeypatch):
    example = torch.rand(3, 3, 6, 6)
    module = LAYERS[number]
    module(example)  # what is lazy takes its shape
    ours, used = traced(module, example, monkeypatch, by_torch=False)
    theirs, _ = traced(module, example, monkeypatch, by_torch=True)
    assert None not in used
    assert programs(ours) == programs(theirs)


@pytest.mark.parametrize("in_place", [False, True])
def test_dropout_draws_where_torch_has_it_drawn(in_place, monkeypatch):
    module = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.3, inplace=in_place), nn.Linear(6, 6))
    example = torch.rand(3, 6)
    (ours, used), (theirs, _) = (traced(module, example, monkeypatch, by_torch=by_torch) for by_torch in (False, True))
    assert None not in used
    assert programs(ours) == programs(theirs)


class TwoNames(nn.Module):
    """One memory under two names, one of which is changed."""

    def __init__(self, second):
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("kept", torch.arange(6.0))
        self.register_buffer("other", second(self.kept))

    def forward(self, x):
        if self.training:
            self.kept.mul_(0.5)
        return self.linear(x) + self.other


def test_one_memory_under_two_names_is_torchs_to_refuse(monkeypatch):
    with pytest.raises(interop.UnsupportedModuleError, match="shares its memory with another tensor"):
        traced(TwoNames(lambda kept: kept.view(6)), torch.rand(3, 6), monkeypatch, by_torch=False)


def test_what_a_hook_holds_is_written_to_as_well(monkeypatch):
    """A sub-module's output that the next one changes in place, as in torch, whose hook's view sees the change."""
    module = nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True))
    encoder, used = traced(module, torch.rand(3, 6), monkeypatch, by_torch=False)
    assert None not in used
    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    features, _ = encoder.apply(encoder.init(jax.random.key(0), (6,)), x, train=True, hidden_layer="0")
    wanted = module(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(features, wanted, atol=1e-6)
