"""What `verify` refuses, and what it doesn't: rounding that a batch norm over two values makes much of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torchvision
from torch import nn

import interop
from byol_jax.errors import ConversionMismatchError, UnsupportedModuleError
from byol_jax.hidden import OUTPUT
from interop.trace import interpret
from interop.trace.ops import table
from interop.trace.verification import verify


def sensitive(depth=40, width=64):
    """Each batch norm of two rows gives ±1, however near the two are; rounding grows from layer to layer."""
    torch.manual_seed(0)
    layers = [[nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()] for _ in range(depth)]
    return nn.Sequential(nn.Flatten(), nn.Linear(48, width), *(layer for block in layers for layer in block))


@pytest.mark.long(tenth=False)
def test_what_rounding_does_to_two_rows_is_no_mistake(monkeypatch):
    """With the two rows alone the same network would be refused."""
    assert interop.from_torch_module(sensitive(), image_size=4).hidden_layers()[-1] == "121"
    monkeypatch.setattr(verify, "ROLLS", 1)
    monkeypatch.setattr(verify, "_first_layer", lambda *rest: None)  # of 122, each run by itself
    with pytest.raises(ConversionMismatchError, match="Sequential in training"):
        interop.from_torch_module(sensitive(), image_size=4)


class SineInTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.first(x)
        return self.second(torch.sin(x) if self.training else x)


@pytest.mark.slow
def test_a_mistake_in_training_alone_is_found_on_either_batch(monkeypatch):
    monkeypatch.setattr(table, "OPERATORS", table.OPERATORS | {"aten.sin": table.OPERATORS["aten.cos"]})
    with pytest.raises(ConversionMismatchError, match=r"SineInTraining in training: .* first at second"):
        interop.from_torch_module(SineInTraining(), image_size=4)


class Multiplies(nn.Module):
    """Multiplies a buffer by the cosine of zero, which leaves it as it was."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(48, 3)
        self.register_buffer("scale", torch.tensor([2.0, -float("inf")]))

    def forward(self, x):
        y = self.layer(x.flatten(1))
        if self.training:
            self.scale.mul_(torch.cos(0 * y.detach().mean()))
        return y


def test_a_buffer_that_torch_leaves_as_it_was_is_compared_too(monkeypatch):
    assert interop.from_torch_module(Multiplies(), image_size=4).hidden_layers() == ("layer",)

    def doubled(context, x):
        return table.OPERATORS["aten.add"](context, operators["aten.cos"](context, x), 1)

    operators = table.OPERATORS
    monkeypatch.setattr(table, "OPERATORS", table.OPERATORS | {"aten.cos": doubled})
    monkeypatch.setattr(verify, "_first_layer", lambda *rest: None)
    with pytest.raises(ConversionMismatchError, match=r"Multiplies in training: .* first at buffer scale"):
        interop.from_torch_module(Multiplies(), image_size=4)


class InsistsOnFloat32(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.error, self.layer = error, nn.Linear(48, 3)

    def forward(self, x):
        if x.dtype != torch.float32:
            raise self.error("float32 only")
        return self.layer(x.flatten(1))


@pytest.mark.slow
@pytest.mark.parametrize("error", [AssertionError, TypeError, RuntimeError, NotImplementedError])
def test_code_that_insists_on_a_type_is_compared_in_it(error, monkeypatch, in_float32_too):
    assert interop.from_torch_module(InsistsOnFloat32(error), image_size=4).hidden_layers() == ("layer",)
    monkeypatch.setattr(table, "OPERATORS", table.OPERATORS | {"aten.linear": lambda context, *rest: rest[0]})
    monkeypatch.setattr(verify, "_first_layer", lambda *rest: None)
    with pytest.raises(ConversionMismatchError, match="first at the output"):
        interop.from_torch_module(InsistsOnFloat32(error), image_size=4)


def test_code_that_fails_on_numbers_is_refused_by_name():
    class Fails(nn.Module):
        def forward(self, x):
            if type(x) is torch.Tensor and not torch.compiler.is_exporting():
                raise ValueError("no numbers, please")
            return x.flatten(1)

    with pytest.raises(UnsupportedModuleError, match=r"Fails in evaluation fails in torch itself.*no numbers, please"):
        interop.from_torch_module(Fails(), image_size=4)


def test_more_of_an_example_are_other_inputs_of_the_same_values():
    for example in (torch.arange(12.0).view(2, 6, 1), torch.arange(12).view(2, 2, 3)):
        more = verify.more_inputs(example)
        assert (more.dtype, more.shape) == (example.dtype, (16, *example.shape[1:]))
        assert len({tuple(row.flatten().tolist()) for row in more}) == 12
        assert set(more[::2].flatten().tolist()) == set(example[0].flatten().tolist())


def test_whole_numbers_as_input():
    """An embedding takes them; it computes in its parameters' type."""
    module = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 5))
    encoder = interop.from_torch_module(module, example_input=torch.randint(10, (2, 3)))
    tokens = np.random.default_rng(0).integers(0, 10, (4, 3))
    variables = encoder.init(jax.random.key(0), (3,))
    got, _ = encoder.apply(variables, jnp.asarray(tokens, jnp.int32), train=False, hidden_layer=OUTPUT)
    with torch.no_grad():
        np.testing.assert_allclose(got, module(torch.from_numpy(tokens)), atol=1e-6)


class Centred(nn.Module):
    """Subtracts the mean over channels as a product with a matrix of one number, then reduces over positions."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.conv = nn.Conv2d(3, 64, 1)
        self.number = nn.Parameter(torch.tensor(1 / 64))
        self.register_buffer("matrix", torch.full((64, 64), 1 / 64), persistent=False)

    def forward(self, x):
        x = self.conv(x).flatten(2).transpose(1, 2)  # [N, 36, 64]
        match self.kind:
            case "full":
                mean = x @ torch.full((64, 64), 1 / 64)
            case "folded":
                mean = x @ (torch.ones(64, 64).t() / 64)
            case "number":
                mean = x @ self.number.expand(64, 64)
            case "buffer":
                mean = nn.functional.linear(x, self.matrix)
            case _:
                kernel = torch.full((64, 64, 1), 1 / 64)
                mean = nn.functional.conv1d(x.transpose(1, 2), kernel).transpose(1, 2)
        return (x - mean).square().mean(1)


@pytest.fixture
def in_float32_too(monkeypatch):
    monkeypatch.delenv(verify.IN_FLOAT64_ALONE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "folded", "number", "buffer", "convolution"])
def test_a_product_with_one_number_everywhere_is_right_when_compiled(kind):
    """XLA:CPU gave NaN or any number (`byol_jax.ops.faults`), in every version from jaxlib 0.10.2 on."""
    module = Centred(kind)
    encoder = interop.from_torch_module(module, image_size=6, verify=False)
    variables = encoder.init(None, (6, 6, 3))
    images = np.random.default_rng(0).random((2, 6, 6, 3)).astype(np.float32)
    wanted = module(torch.from_numpy(images.transpose(0, 3, 1, 2))).detach().numpy()

    def outputs(variables, images):
        return encoder.apply(variables, images, train=True, hidden_layer=OUTPUT, key=None)[0]

    np.testing.assert_allclose(jax.jit(outputs)(variables, images), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_what_xla_gets_wrong_in_float32_alone_is_refused(monkeypatch, in_float32_too):
    """In place of a fault that only some versions have: an operator that is right in float64 alone."""
    cosine = table.OPERATORS["aten.cos"]

    def rounded(context, x):
        y = cosine(context, x)
        return y._replace(array=jnp.round(y.array, 2) if y.dtype == jnp.float32 else y.array)

    class Cosine(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(48, 4)

        def forward(self, x):
            return torch.cos(self.layer(x.flatten(1)))

    interop.from_torch_module(Cosine(), image_size=4)
    monkeypatch.setattr(table, "OPERATORS", table.OPERATORS | {"aten.cos": rounded})
    with pytest.raises(
        ConversionMismatchError, match=r"compiled in float32 for 2 inputs: the output is off by .* XLA of jaxlib"
    ):
        interop.from_torch_module(Cosine(), image_size=4)


@pytest.mark.slow
def test_a_difference_by_16_bits_that_the_code_asks_for_says_so():
    class Island(nn.Module):
        def forward(self, x):
            return (x.half() * 2).float().flatten(1)

    module = nn.Sequential(nn.Conv2d(3, 4, 1), Island())
    expected = r"first at 1; 1 computes in float16 \(aten._to_copy.default\), .*leave the cast out; verify=False"
    with pytest.raises(ConversionMismatchError, match=expected):
        interop.from_torch_module(module, image_size=4)


@pytest.mark.slow
def test_what_is_off_on_one_of_several_inputs_is_rounding(monkeypatch, in_float32_too):
    """A number on the other side of a ReLU's bend; in its place, an operator that is off on the example alone."""
    cosine, met = table.OPERATORS["aten.cos"], float(torch.rand(1, generator=torch.Generator().manual_seed(0)))

    def off_once(context, x):
        y, first = cosine(context, x), x.array.reshape(-1)[0]
        fault = jnp.where(jnp.abs(first - met) < 1e-6, 0.5, 0.0) if y.dtype == jnp.float32 else 0.0
        return y._replace(array=y.array + jnp.asarray(fault, y.dtype))

    class Cosine(nn.Module):
        def forward(self, x):
            return torch.cos(x).flatten(1)

    monkeypatch.setattr(table, "OPERATORS", table.OPERATORS | {"aten.cos": off_once})
    interop.from_torch_module(Cosine(), image_size=4)
    monkeypatch.setattr(verify, "ATTEMPTS", 1)
    with pytest.raises(ConversionMismatchError, match="compiled in float32 for 2 inputs: the output is off"):
        interop.from_torch_module(Cosine(), image_size=4)


@pytest.mark.long
def test_networks_with_many_bends_are_not_refused(in_float32_too, share, figure):
    """Seed 2 is refused where one input decides: a gradient is 0.2 of its largest value off."""
    seeds = share([2, *range(3, 12)])
    for seed in seeds:
        torch.manual_seed(seed)
        assert interop.from_torch_module(torchvision.models.resnet18(), image_size=64).hidden_layers()[-1] == "fc"
    figure("random resnet18s of 64 pixels go through verification", cases=len(seeds), result="none is refused")


@pytest.mark.slow
def test_a_fault_of_the_installed_xla_is_refused(monkeypatch, in_float32_too):
    """The same product, not kept out of XLA's way: refused where XLA has the fault, accepted where it hasn't."""
    monkeypatch.setattr(interpret, "with_concealed_operands", lambda node, values, uniform: values)
    t = jnp.asarray(np.random.default_rng(0).random((2, 36, 64)), jnp.float32)

    def product(t):
        return jnp.square(t - t @ jnp.full((64, 64), 1 / 64)).mean(1)

    if np.allclose(jax.jit(product)(t), product(t), rtol=1e-3):
        interop.from_torch_module(Centred("full"), image_size=6)
    else:
        with pytest.raises(ConversionMismatchError, match="Centred in evaluation"):
            interop.from_torch_module(Centred("full"), image_size=6)
