"""A traced module computes what the module computes: output, gradients, buffers, in both modes, at any batch size."""

import copy
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
from traced_comparison import as_jax, assert_close, check_the_same, numbers
from traced_modules import MODULES, Chance, ChanceInside, Residual, Several, Signal, Stopped, Tied, Transformed

import interop
from byol_jax import ConfigurationError, HiddenLayerNotFoundError, make_learner
from byol_jax.errors import ConversionMismatchError, UnsupportedModuleError, UnsupportedOpError
from byol_jax.tree import flatten
from interop import from_torch_module


@pytest.fixture(autouse=True)
def in_double_precision():
    torch.manual_seed(0)
    with jax.enable_x64(True):
        yield


@cache
def verified(name: str):
    """The module and its encoder, traced and verified once for both modes."""
    module = MODULES[name]().double()
    return module, from_torch_module(module, image_size=4)


@pytest.mark.slow
@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", MODULES)
def test_it_computes_what_the_module_computes(name: str, train: bool) -> None:
    """For a batch of five; of two, that is what the verification compared."""
    module, encoder = verified(name)
    check_the_same(module, numbers(5, 3, 4, 4), train=train, encoder=encoder)


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["conv1", "bn1", "relu", "conv2", "bn2", "pool", "fc"])
def test_a_hidden_layer_holds_what_a_hook_holds_in_the_end(layer: str) -> None:
    """In-place writes after the hook included, and the last call's output of a module that is called twice."""
    module, encoder = verified("Residual")
    check_the_same(module, numbers(3, 3, 4, 4), train=True, encoder=encoder, layer=layer)


@pytest.mark.slow
def test_a_signal_and_a_linear_layer() -> None:
    module = Signal().double()
    encoder = from_torch_module(module, example_input=numbers(2, 2, 16))
    check_the_same(module, numbers(3, 2, 16), train=True, encoder=encoder)
    linear = nn.Linear(7, 3).double()
    check_the_same(linear, numbers(4, 7), train=True, encoder=from_torch_module(linear, example_input=numbers(1, 7)))


@pytest.mark.slow
def test_a_spatial_transformer_and_sums_by_edges() -> None:
    module = Transformed().double()
    encoder = from_torch_module(module, image_size=4)
    assert encoder.facts.traced.takes_any_batch
    check_the_same(module, numbers(3, 3, 4, 4), train=True, encoder=encoder)


def test_leaves_have_torchs_names_and_layout() -> None:
    variables = from_torch_module(Residual(), image_size=4, verify=False).init(None, (4, 4, 3))
    assert flatten(variables.params)["conv1/weight"].shape == (8, 3, 3, 3)
    assert flatten(variables.stats)["bn1/num_batches_tracked"].dtype == jnp.int32
    assert from_torch_module(Residual(), image_size=4, verify=False).hidden_layers() == (
        *("conv1", "bn1", "relu", "conv2", "bn2", "pool", "fc"),
    )


def test_tied_tensors_are_one_leaf() -> None:
    params = flatten(from_torch_module(Tied(), image_size=4, verify=False).init(None, (4, 4, 3)).params)
    assert sorted(params) == ["first/bias", "first/weight", "second/bias"]


@pytest.mark.slow
def test_the_module_is_left_as_it_was() -> None:
    module = Residual()
    module.bn1.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    from_torch_module(module, image_size=4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert module.training
    assert not module.bn1.training
    assert not any(part._forward_hooks for part in module.modules())


@pytest.mark.slow
def test_chance_comes_from_the_key_alone() -> None:
    module = Chance().double()
    encoder = from_torch_module(module, image_size=4)
    variables = encoder.init(None, (4, 4, 3))
    images = jnp.ones((64, 4, 4, 3))

    def apply(key, train=True):
        return encoder.apply(variables, images, train=train, hidden_layer=-1, key=key)[0]

    first, again, other = (apply(jax.random.key(seed)) for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
    zero = float((first == 0).mean())
    assert abs(zero - (1 - 0.7 * 0.5 * 0.8)) < 0.05  # 64 coins of 0.8 decide whole images: 0.05 is one deviation
    with pytest.raises(ConfigurationError, match="needs a key"):
        apply(None)
    assert_close(apply(None, train=False), module.eval()(torch.ones(64, 3, 4, 4, dtype=torch.float64)).detach().numpy())


@pytest.mark.slow
def test_chance_inside_other_operators_is_verified_and_drawn() -> None:
    encoder = from_torch_module(ChanceInside().double(), image_size=4)  # verify would refuse what draws on one side
    variables, images = encoder.init(None, (4, 4, 3)), jnp.ones((2, 4, 4, 3))
    first, other = (
        encoder.apply(variables, images, train=True, hidden_layer=-1, key=jax.random.key(seed))[0] for seed in (0, 1)
    )
    assert (first != other).any()


def test_an_output_that_is_no_tensor_leaves_the_layers() -> None:
    encoder = from_torch_module(Several(), image_size=4)
    variables, images = encoder.init(None, (4, 4, 3)), jnp.ones((2, 4, 4, 3))
    assert encoder.apply(variables, images, train=True, hidden_layer="body.0")[0].shape == (2, 16)
    with pytest.raises(HiddenLayerNotFoundError, match="isn't one tensor"):
        encoder.apply(variables, images, train=True, hidden_layer=-1)


def test_no_gradient_where_torch_has_none() -> None:
    """A learner masks these from its optimiser, as PyTorch leaves grad None."""
    from byol_jax.optim import find_dependence

    encoder = from_torch_module(Stopped(), image_size=4, verify=False)
    variables = encoder.init(None, (4, 4, 3))
    reached = find_dependence(
        lambda params: encoder.apply(
            variables._replace(params=params), jnp.ones((2, 4, 4, 3)), train=True, hidden_layer=-1
        )[0],
        variables.params,
    )
    assert {name for name, flag in flatten(reached).items() if flag} == {"used/weight", "used/bias"}


class Item(nn.Module):
    def forward(self, x):
        return x if x.sum().item() > 0 else -x


REFUSED = {
    "decides by the values": (Item(), UnsupportedModuleError),
    "bn is a BatchNorm2d with momentum=None": (
        nn.Sequential().append(nn.Conv2d(3, 3, 1)) and nn.ModuleDict({"bn": nn.BatchNorm2d(3, momentum=None)}),
        UnsupportedModuleError,
    ),
    "lazy parameter": (nn.LazyConv2d(3, 1), UnsupportedModuleError),
    "complex64": (nn.ParameterList([torch.zeros(2, dtype=torch.complex64)]), UnsupportedModuleError),
    "expected a torch.nn.Module": (lambda x: x, UnsupportedModuleError),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_imported_is_refused_with_a_reason(reason: str) -> None:
    module, error = REFUSED[reason]
    with pytest.raises(error, match=reason) as caught:
        from_torch_module(module, image_size=4)
    assert "\n" not in str(caught.value)


class Rare(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))

    def forward(self, x):
        return torch.special.i1e(self.inner(x)) + torch.special.bessel_j0(self.inner(x))


@pytest.mark.slow
def test_missing_operators_are_all_named_and_can_be_added() -> None:
    names = ["aten.special_i1e.default", "aten.special_bessel_j0.default"]
    assert interop.missing_ops(Rare(), image_size=4) == names
    with pytest.raises(UnsupportedOpError, match=r"2 operators.*special_i1e.*special_bessel_j0.*register_op"):
        from_torch_module(Rare(), image_size=4)
    report = interop.check(Rare(), image_size=4)
    assert not report.supported
    assert len(report.problems) == 2

    interop.register_op(names[0])(jax.scipy.special.i1e)
    interop.register_op(names[1])(lambda x: jnp.sinc(x))
    assert interop.missing_ops(Rare(), image_size=4) == []
    assert interop.check(Rare(), image_size=4).supported
    with pytest.raises(ConversionMismatchError, match="differ"):  # sinc isn't the Bessel function
        from_torch_module(Rare(), image_size=4)


@pytest.mark.slow
def test_verify_names_the_first_sub_module_that_differs(monkeypatch) -> None:
    from interop.trace.ops import table

    wrong = table.OPERATORS | {"aten.adaptive_avg_pool2d": table.OPERATORS["aten.adaptive_max_pool2d"]}
    wrong["aten.adaptive_avg_pool2d"] = lambda *a, **k: table.OPERATORS["aten.adaptive_max_pool2d"](*a, **k)[0]
    monkeypatch.setattr(table, "OPERATORS", wrong)
    with pytest.raises(ConversionMismatchError, match="first at pool"):
        from_torch_module(Residual(), image_size=4)


def test_another_size_is_refused() -> None:
    encoder = from_torch_module(Residual(), image_size=4, verify=False)
    with pytest.raises(ConfigurationError, match=r"traced for inputs of shape \(4, 4, 3\), not \(8, 8, 3\)"):
        encoder.init(None, (8, 8, 3))
    with pytest.raises(UnsupportedModuleError, match="image_size=None"):
        from_torch_module(Residual())


def test_gradients_through_pools_are_torchs_under_jit() -> None:
    """XLA computed the batch norm again in the pool's backward pass, rounded otherwise, and lost all gradient."""
    pools = [nn.MaxPool2d(3, 2), nn.AvgPool2d(3, 1, 1)]
    module = nn.Sequential(nn.Conv2d(3, 192, 1), nn.BatchNorm2d(192), nn.ReLU(), *pools, nn.Conv2d(192, 8, 1))
    encoder = from_torch_module(module, image_size=20, verify=False)
    variables = jax.tree.map(lambda leaf: leaf.astype(np.float64), encoder.init(None, (20, 20, 3)))
    x = numbers(3, 3, 20, 20)
    theirs = copy.deepcopy(module).double().train()
    output = theirs(x)
    weights = numbers(*output.shape, seed=2)
    (output * weights).sum().backward()

    @jax.jit
    def gradient(params, images, weights):
        def total(params):
            given = variables._replace(params=params)
            features, _ = encoder.apply(given, images, train=True, hidden_layer=-1, key=None)
            return (features * weights).sum()

        return jax.grad(total)(params)

    ours = gradient(variables.params, as_jax(x), jnp.asarray(weights.numpy()))
    assert_close(ours["1"]["bias"], theirs[1].bias.grad.numpy())
    assert_close(ours["1"]["weight"], theirs[1].weight.grad.numpy())


@pytest.mark.slow
@pytest.mark.parametrize("pool", [nn.AdaptiveAvgPool2d(1), nn.Identity()], ids=["one pixel", "maps"])
def test_a_learner_flattens_an_output_of_maps_as_a_named_layer(pool):
    """lightly's users cut their networks so: the output is [N, C, 1, 1], or [N, C, H, W]; in torch's order C·H·W."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), pool).double().eval()
    images = numbers(4, 3, 9, 8).abs().clamp(0, 1)
    sizes = {"image_size": (9, 8), "projection_size": 4, "projection_hidden_size": 8, "dtype": jnp.float64}
    plain = {"augment_fn": lambda key, image: image, **sizes}
    encoder = from_torch_module(module, image_size=(9, 8))
    output, named = (make_learner(encoder, hidden_layer=layer, **plain) for layer in (-1, "2"))
    state = jax.jit(output.init)(jax.random.key(0))
    wanted = module(images).detach().flatten(1).numpy()
    assert_close(output.embed(state, as_jax(images)), wanted)
    np.testing.assert_array_equal(output.embed(state, as_jax(images)), named.embed(state, as_jax(images)))
    assert output.settings.feature_size == named.settings.feature_size == wanted.shape[1]


class Assigns(nn.Module):
    """A running mean that is assigned anew with every call, by a module inside of another."""

    def __init__(self, new):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3))
        self.new = new

    def forward(self, y):
        out = y - self.mean
        if self.training:
            self.mean = self.new(self.mean, y)
        return out + 0.5 * self.mean


@pytest.mark.parametrize(
    "new", [lambda mean, y: 0.5 * mean + 0.5 * y.detach().mean(0), lambda mean, y: mean.lerp(y.detach().amax(0), 0.1)]
)
@pytest.mark.slow
def test_a_buffer_that_is_assigned_is_changed_as_one_in_place(new):
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 3), Assigns(new)).double()
    module[2].mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    encoder = interop.from_torch_module(module, image_size=4, verify=False)
    assert set(encoder.facts.traced.traced.train.buffers) == {"2.mean"}
    for train in (True, False):
        check_the_same(module, numbers(5, 3, 4, 4), train=train, encoder=encoder)
    assert module[2].mean.tolist() == [1, 2, 3]


def test_a_buffer_that_is_assigned_another_shape_with_every_call_is_refused_by_name():
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 3), Assigns(lambda mean, y: y.detach()[:1]))
    (problem,) = interop.check(module, image_size=4).problems
    assert "leaves 2.mean for its next call, and it changes with every call" in problem


def test_a_buffer_that_is_one_tensor_under_two_names_is_not_to_be_assigned():
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 3), Assigns(lambda mean, y: mean + 1))
    module.register_buffer("mean", module[2].mean)
    (problem,) = interop.check(module, image_size=4).problems
    assert "2.mean is assigned another tensor: change it in place, by copy_" in problem


class TableForTheSize(nn.Module):
    """Positions, computed when the images have another size than those before, and kept in a buffer."""

    def __init__(self, persistent, scale=None):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.scale = scale
        self.register_buffer("table", torch.zeros(1, 1), persistent=persistent)

    def forward(self, x):
        if self.table.shape[-1] != x.shape[-1]:
            scale = 1.0 if self.scale is None else self.scale(x).detach()
            self.table = scale * torch.arange(x.shape[-1], dtype=x.dtype).expand(1, -1)
        return self.conv(x + self.table).mean((2, 3))


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [True, False])
def test_a_table_for_the_size_of_the_images_is_part_of_the_graph(persistent):
    module = TableForTheSize(persistent).double()
    encoder = interop.from_torch_module(module, image_size=5)
    assert not encoder.facts.traced.traced.train.buffers
    assert module.table.shape == (1, 1)
    images = numbers(4, 3, 5, 5)
    ours, _ = encoder.apply(encoder.init(None, (5, 5, 3)), as_jax(images), train=True, hidden_layer=-1)
    assert_close(np.asarray(ours), module(images).detach().numpy())


def test_a_table_of_the_first_images_that_are_met_is_refused_by_name():
    module = TableForTheSize(persistent=False, scale=lambda x: x[0, 0, 0, 0])
    (problem,) = interop.check(module, image_size=5).problems
    assert "leaves table for its next call, and another call computes something else" in problem


class ReturnsNothing(nn.Module):
    """Its own `train` returns nothing, and keeps batch norm in evaluation."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def train(self, mode=True):
        super().train(mode)
        self.norm.train(False)

    def forward(self, x):
        return self.norm(self.conv(x)).mean((2, 3))


@pytest.mark.slow
def test_a_train_method_that_returns_nothing():
    module = ReturnsNothing().double()
    assert interop.check(module, image_size=4).supported
    encoder = from_torch_module(module, image_size=4)
    assert not encoder.facts.traced.traced.train.buffers
    module.train()
    ours, _ = encoder.apply(encoder.init(None, (4, 4, 3)), jnp.ones((2, 4, 4, 3)), train=True, hidden_layer=-1)
    assert_close(np.asarray(ours), module(torch.ones(2, 3, 4, 4).double()).detach().numpy())


class CountsAlways(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(48, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.linear(x.flatten(1)) + self.calls


def test_a_buffer_that_changes_in_evaluation_too_is_named():
    with pytest.warns(
        UserWarning, match="CountsAlways changes calls in evaluation too: there an encoder gives features"
    ):
        from_torch_module(CountsAlways(), image_size=4, verify=False)
