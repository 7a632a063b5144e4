"""Gradients that a forward pass doesn't tell are torch's, or refused by name: Functions, checkpoints, hooks."""

import contextlib
import copy
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.utils.checkpoint as checkpoints
from gradient_draws import FUNCTIONS, HOOKS, WIDTH, Drawn
from torch import nn

import interop
from byol_jax.errors import ConversionMismatchError, UnsupportedModuleError
from byol_jax.tree import flatten
from interop.trace import export


@pytest.fixture(autouse=True)
def in_double_precision():
    with jax.enable_x64(True):
        yield


def in_torch(module, x, train, weights):
    """The gradient of a weighted sum of the output by every parameter; zero where torch has none."""
    module = copy.deepcopy(module).train(train)
    (module(x) * weights).sum().backward()
    return {
        name: np.zeros(tuple(parameter.shape)) if parameter.grad is None else parameter.grad.numpy()
        for name, parameter in module.named_parameters()
    }


def in_jax(encoder, x, train, weights):
    images, weights = jnp.asarray(x.permute(0, 2, 3, 1).numpy()), jnp.asarray(weights.numpy())
    variables = encoder.init(None, images.shape[1:])

    @jax.jit
    @jax.grad
    def gradient(params):
        given = variables._replace(params=params)
        return (encoder.apply(given, images, train=train, hidden_layer=-1)[0] * weights).sum()

    return {name.replace("/", "."): np.asarray(leaf) for name, leaf in flatten(gradient(variables.params)).items()}


def numbers(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def check_gradients(module, encoder, train):
    x, weights = numbers(5, 3, 4, 4), numbers(5, WIDTH, seed=2)
    ours, wanted = in_jax(encoder, x, train, weights), in_torch(module, x, train, weights)
    assert ours.keys() == wanted.keys()
    least = 1e-4 * max(np.abs(gradient).max() for gradient in wanted.values())
    for name, gradient in wanted.items():
        scale = max(np.abs(gradient).max(), least)
        np.testing.assert_allclose(ours[name], gradient, rtol=0, atol=1e-9 * scale, err_msg=name)
    return wanted


class Chain(nn.Module):
    """All Functions, one after another, a layer between two."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(48 if n == 0 else WIDTH, WIDTH) for n in range(len(FUNCTIONS)))
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, WIDTH))

    def forward(self, x):
        x = x.flatten(1)
        for layer, function in zip(self.layers, FUNCTIONS.values(), strict=True):
            x = function(torch.tanh(layer(x)), self.scale)
        return x


@pytest.fixture(scope="module")
def chain():
    torch.manual_seed(0)
    module = Chain().double()
    return module, interop.from_torch_module(module, image_size=4, verify=False)


@pytest.mark.slow
@pytest.mark.parametrize("train", [True, False])
def test_a_functions_own_backward_is_the_gradient(chain, train):
    module, encoder = chain
    check_gradients(module, encoder, train)


def test_a_saved_network_keeps_it(chain, tmp_path):
    module, encoder = chain
    interop.save_network(tmp_path, encoder)
    check_gradients(module, interop.load_network(tmp_path), True)


@pytest.mark.slow
def test_it_is_the_same_on_two_devices(chain):
    """The mean of the gradients of two halves of a batch, whether shard_map checks what varies or not."""
    _, encoder = chain
    variables = encoder.init(None, (4, 4, 3))
    images = jnp.asarray(np.random.default_rng(0).standard_normal((4, 4, 4, 3)))
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])

    @jax.grad
    def gradient(params, images):
        features, _ = encoder.apply(variables._replace(params=params), images, train=True, hidden_layer=-1)
        return jnp.square(features).mean()

    def on_each(params, images):
        return jax.lax.pmean(gradient(jax.lax.pcast(params, "data", to="varying"), images), "data")

    halves = [jax.jit(gradient)(variables.params, half) for half in (images[:2], images[2:])]
    wanted = jax.tree.map(lambda *parts: sum(parts) / 2, *halves)
    for check in (True, False):
        specs = {"in_specs": (jax.P(), jax.P("data")), "out_specs": jax.P()}
        ours = jax.jit(jax.shard_map(on_each, mesh=mesh, check_vma=check, **specs))(variables.params, images)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), ours, wanted)


class Checkpointed(nn.Module):
    """A checkpoint around two layers, one of which has one of its own; with `first` another around the stem."""

    def __init__(self, first=False):
        super().__init__()
        self.first, self.stem, self.head = first, nn.Linear(48, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.inner, self.outer = nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)

    def work(self, x):
        return self.outer(torch.tanh(checkpoints.checkpoint(self.inner, x, use_reentrant=True)))

    def forward(self, x):
        x = x.flatten(1)
        x = checkpoints.checkpoint(self.stem, x, use_reentrant=True) if self.first else self.stem(x)
        return self.head(torch.tanh(checkpoints.checkpoint(self.work, torch.tanh(x), use_reentrant=True)))


def test_a_reentrant_checkpoint_changes_no_gradient():
    module = Checkpointed().double()
    gradients = check_gradients(module, interop.from_torch_module(module, image_size=4, verify=False), True)
    assert all(np.any(gradient) for name, gradient in gradients.items() if name != "stem.bias")


class KeptFunction(nn.Module):
    """A Function inside a checkpoint of the other kind, which lets everything that is kept through hooks of its own."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(48, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, WIDTH))

    def work(self, x):
        return self.head(FUNCTIONS["scaled"](x, self.scale))

    def forward(self, x):
        return checkpoints.checkpoint(self.work, torch.tanh(self.stem(x.flatten(1))), use_reentrant=False)


@pytest.mark.slow
def test_a_function_in_a_checkpoint_of_the_other_kind():
    module = KeptFunction().double()
    gradients = check_gradients(module, interop.from_torch_module(module, image_size=4, verify=False), True)
    assert all(map(np.any, gradients.values()))


@pytest.mark.slow
def test_a_checkpoint_on_the_images_gives_no_gradient_as_in_torch_and_says_so():
    module = Checkpointed(first=True).double()
    with pytest.warns(
        UserWarning, match="the module: torch.utils.checkpoint with use_reentrant=True .* use_reentrant=False"
    ):
        encoder = interop.from_torch_module(module, image_size=4, verify=False)
    with pytest.warns(UserWarning, match="None of the inputs have requires_grad=True"):  # torch's own
        gradients = check_gradients(module, encoder, True)
    assert not np.any(gradients["stem.weight"])


@pytest.mark.parametrize("kind", [kind for kind in HOOKS if kind != "tensor"])
def test_a_hook_is_refused_before_anything_is_traced(kind):
    (problem,) = interop.check(Drawn(0, kind), image_size=4).problems
    assert HOOKS[kind] in problem
    assert "steps." in problem
    assert "handle.remove()" in problem


def test_a_hook_on_every_module_is_refused():
    handle = nn.modules.module.register_module_full_backward_hook(lambda part, dx, dy: None)
    try:
        (problem,) = interop.check(nn.Linear(3, 2), example_input=torch.ones(1, 3)).problems
    finally:
        handle.remove()
    assert "for all modules" in problem


class Recomputed(torch.autograd.Function):
    """A checkpoint as other libraries have it."""

    @staticmethod
    def forward(ctx, function, x):
        ctx.function, ctx.saved = function, x
        with torch.no_grad():
            return function(x)

    @staticmethod
    def backward(ctx, dy):
        x = ctx.saved.detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.function(x)
        torch.autograd.backward(y, dy)
        return None, x.grad


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx, dy):
        return 2 * dy


class Refused(nn.Module):
    """Three things at once that can't be followed."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Linear(48, WIDTH), nn.Sequential(nn.Linear(WIDTH, WIDTH), Middle())

    def forward(self, x):
        return self.body(torch.tanh(self.stem(x.flatten(1))))


class Middle(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        y = InPlace.apply(Recomputed.apply(self.layer, x).clone())
        y.register_hook(lambda gradient: gradient / 2)
        return y


def test_all_that_cannot_be_followed_is_named_at_once():
    with pytest.raises(UnsupportedModuleError) as raised:
        interop.from_torch_module(Refused(), image_size=4)
    text = str(raised.value)
    assert "body.1 calls Recomputed, a torch.autograd.Function whose backward can't be followed" in text
    assert "body.1 calls InPlace, a torch.autograd.Function that changes its input" in text
    assert f"body.1 {HOOKS['tensor']}" in text
    assert torch.Tensor.register_hook.__module__ == "torch._tensor"
    assert "forward" not in vars(torch.autograd.function.FunctionMeta)


@contextlib.contextmanager
def nothing_is_followed(module, followed):
    yield


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_verification_finds_a_gradient_that_the_trace_has_lost(monkeypatch, scale):
    """Behind a scale of zero, too, where every gradient is zero."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.scale = nn.Linear(48, WIDTH), nn.Parameter(torch.tensor(scale))

        def forward(self, x):
            x = self.layer(x.flatten(1))
            return x + self.scale * FUNCTIONS["reversed"](x, None)

    monkeypatch.setattr(export, "follow_gradients", nothing_is_followed)
    with pytest.raises(ConversionMismatchError, match=r"Scaled in evaluation: .* first at the gradient by layer.bias"):
        interop.from_torch_module(Scaled(), image_size=4)


class Reversed(nn.Module):
    def forward(self, x):
        return FUNCTIONS["reversed"](x, None)


class Beside(nn.Module):
    """A layer that the output's gradient doesn't reach: an online probe's features, or an output that is no tensor."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.layer = nn.Sequential(nn.Linear(48, WIDTH), Reversed())
        self.side, self.head = nn.Linear(48, 2), nn.Linear(WIDTH, 2)

    def forward(self, x):
        x = x.flatten(1)
        side, y = self.side(x), self.layer(x)
        match self.kind:
            case "probe":
                return self.head(y.detach())
            case "dict":
                return {"features": self.head(y), "side": side}
            case _:
                return side, self.head(y).argmax(1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["probe", "dict", "tuple"])
def test_verification_finds_it_where_the_outputs_gradient_does_not_reach(monkeypatch, kind):
    interop.from_torch_module(Beside(kind), image_size=4)
    monkeypatch.setattr(export, "follow_gradients", nothing_is_followed)
    with pytest.raises(
        ConversionMismatchError, match=r"Beside in evaluation: .* first at the gradient by layer.0.bias"
    ):
        interop.from_torch_module(Beside(kind), image_size=4)


def gate_in_autocast(self, y):
    with torch.autocast("cpu", enabled=False):
        with torch.no_grad():
            gate = torch.sigmoid(self.inner(y))
        return y * gate


def gate_detached_in_place(self, y):
    gate = self.inner(y) * 2
    gate.detach_()
    return y * gate + gate.sin()


def detached_in_a_block(self, y):
    with torch.no_grad():
        gate = self.inner(y) * 2
        gate.detach_()
    return y * gate


class Stopped(nn.Module):
    def __init__(self, stop):
        super().__init__()
        self.stop = stop
        self.first, self.inner = nn.Linear(48, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.stop(self, torch.tanh(self.first(x.flatten(1))))


@pytest.mark.parametrize("stop", [gate_in_autocast, gate_detached_in_place, detached_in_a_block])
def test_a_gradient_that_stops_stops_wherever_that_is_said(stop):
    module = Stopped(stop).double()
    gradients = check_gradients(module, interop.from_torch_module(module, image_size=4, verify=False), True)
    assert not np.any(gradients["inner.weight"])
    assert np.any(gradients["first.weight"])


class OnlyForward(nn.Module):
    """torch itself can't differentiate it: an operand that the backward pass needs is overwritten."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(48, WIDTH)

    def forward(self, x):
        x = self.layer(x.flatten(1))
        y = torch.exp(x)
        z = y * y
        y.mul_(2)
        return z


def test_where_torch_has_no_gradient_it_is_said():
    with pytest.warns(UserWarning, match="OnlyForward in training: gradients weren't compared, for torch can't"):
        interop.from_torch_module(OnlyForward(), image_size=4)


def draw(seed, kind=None):
    return Drawn(seed, kind).double()


def check_draw(seed):
    """Torch's gradient in both modes; and with a hook of any kind somewhere, a refusal that says so."""
    module = draw(seed)
    encoder = interop.from_torch_module(module, image_size=4, verify=False)
    for train in (True, False):
        check_gradients(module, encoder, train)
    kind = random.Random(seed).choice(list(HOOKS))
    with pytest.raises(UnsupportedModuleError, match=HOOKS[kind]):
        interop.from_torch_module(draw(seed, kind), image_size=4, verify=False)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_random_network_has_torchs_gradient_or_is_refused(seed):
    check_draw(seed)


@pytest.mark.long
def test_random_networks_have_torchs_gradient_or_are_refused(share, figure):
    seeds = share([*range(3, 103)])
    for seed in seeds:
        check_draw(seed)
    figure(
        "networks with Functions, checkpoints and hooks",
        cases=len(seeds),
        result="torch's gradient, or refused by name",
    )


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad:UserWarning")  # a checkpoint in another one
def test_verification_alone_finds_what_the_trace_has_lost(monkeypatch, share, figure):
    """Where nothing is followed, every network whose gradient isn't torch's is refused."""
    monkeypatch.setattr(export, "follow_gradients", nothing_is_followed)
    seeds, lost = share([*range(200, 240)]), 0
    for seed in seeds:
        module = draw(seed)
        encoder = interop.from_torch_module(module, image_size=4, verify=False)
        try:
            for train in (True, False):
                check_gradients(module, encoder, train)
        except AssertionError:
            lost += 1
            with pytest.raises(ConversionMismatchError):
                interop.from_torch_module(module, image_size=4)
        else:
            interop.from_torch_module(module, image_size=4)
    assert lost
    figure("the same with their gradients lost", cases=lost, result="refused by verification")
