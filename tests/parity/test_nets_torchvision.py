"""Native ResNets against torchvision's: outputs, gradients, statistics, hooks and names."""

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
import torch
from torchvision import models
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from byol_jax import nets
from byol_jax.tree import flatten
from tests.parity.torch_nets import assert_leaves_close, channels_first, hooked, randomise, train_once, variables_of


class SameConv(torch.nn.Module):
    """TensorFlow's SAME around a torchvision convolution or pool, by explicit padding."""

    def __init__(self, inner, window, stride, value):
        super().__init__()
        self.inner, self.window, self.stride, self.value = inner, window, stride, value
        inner.padding = 0 if isinstance(inner, torch.nn.MaxPool2d) else (0, 0)

    def forward(self, x):
        totals = [max((-(-n // self.stride) - 1) * self.stride + self.window - n, 0) for n in x.shape[:1:-1]]
        pads = [half for total in totals for half in (total // 2, total - total // 2)]  # left, right, top, bottom
        return self.inner(torch.nn.functional.pad(x, pads, value=self.value))


def with_same_padding(module):
    for name, child in list(module.named_modules()):
        if isinstance(child, torch.nn.Conv2d):
            wrapped = SameConv(child, child.kernel_size[0], child.stride[0], 0.0)
        elif isinstance(child, torch.nn.MaxPool2d):
            wrapped = SameConv(child, child.kernel_size, child.stride, -float("inf"))
        else:
            continue
        module.set_submodule(name, wrapped)
    return module


def for_cifar(module):
    module.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    module.maxpool = torch.nn.Identity()
    return module


def basic(**options: Any):
    return ResNet(BasicBlock, [2, 1, 1, 1], num_classes=7, **options)


def bottleneck(**options: Any):
    return ResNet(Bottleneck, [1, 2, 1, 1], num_classes=7, **options)


BASIC = nets.resnet((2, 1, 1, 1), num_classes=7)
BOTTLENECK = nets.resnet((1, 2, 1, 1), block="bottleneck", num_classes=7)
WIDE, NEXT = {"width_per_group": 96}, {"groups": 4, "width_per_group": 24}

PAIRS = {
    "basic": (basic, BASIC),
    "bottleneck": (bottleneck, BOTTLENECK),
    "wide": (partial(bottleneck, **WIDE), nets.resnet((1, 2, 1, 1), block="bottleneck", num_classes=7, **WIDE)),
    "next": (partial(bottleneck, **NEXT), nets.resnet((1, 2, 1, 1), block="bottleneck", num_classes=7, **NEXT)),
    "cifar": (lambda: for_cifar(basic()), nets.resnet((2, 1, 1, 1), num_classes=7, stem="cifar")),
    "resnet18": (models.resnet18, nets.resnet18()),
    "resnet34": (models.resnet34, nets.resnet34()),
    "resnet50": (models.resnet50, nets.resnet50()),
}
SLOW = pytest.mark.slow


def images(dtype, size=(33, 40), count=4):
    return np.random.default_rng(1).standard_normal((count, *size, 3)).astype(dtype)


def check_parity(module, encoder, dtype, tolerance):
    """Evaluation, then one training pass's output and statistics, in one compilation; both gradients are returned."""
    torch.manual_seed(0)
    module = randomise(module().to({"float64": torch.float64, "float32": torch.float32}[dtype]))
    x, variables = images(dtype), variables_of(module)
    weights = np.random.default_rng(2).standard_normal((len(x), 1000))[:, : module.fc.out_features].astype(dtype)

    @jax.jit
    def both(variables, x):
        def loss(params):
            output, stats = encoder.apply(variables._replace(params=params), x, train=True, hidden_layer=-1)
            return (output * weights).sum(), (output, stats)

        evaluated, _ = encoder.apply(variables, x, train=False, hidden_layer=-1)
        return evaluated, *jax.value_and_grad(loss, has_aux=True)(variables.params)

    evaluated, (_, (output, stats)), gradients = both(variables, x)
    with torch.no_grad():
        expected = module.eval()(torch.from_numpy(channels_first(x))).numpy()
    assert_leaves_close({"evaluated": evaluated}, {"evaluated": expected}, tolerance)
    trained = train_once(module, channels_first(x), weights)
    assert_leaves_close({"output": output}, {"output": trained.output}, tolerance)
    assert_leaves_close(stats, trained.stats, tolerance)
    return flatten(gradients), trained.gradients


@pytest.mark.slow
@pytest.mark.parametrize("name", ["basic", "bottleneck"])
def test_forward_backward_and_statistics_in_float64(name):
    check_in_float64(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["basic"])
def test_forward_backward_and_statistics_in_float32(name):
    check_in_float32(name)


@pytest.mark.long
def test_forward_backward_and_statistics_of_all(share, figure):
    single, double = share([name for name in PAIRS if name != "bottleneck"]), share(list(PAIRS))
    for name in single:
        check_in_float32(name)
    for name in double:
        check_in_float64(name)
    figure(
        "native ResNets against torchvision's: output, statistics and gradients, float32 and float64",
        cases=len(single) + len(double),
        result="within 2e-4 and 1e-11; gradients within 3 % as one vector and 1e-10",
    )


def check_in_float64(name):
    with jax.enable_x64(True):
        gradients, expected = check_parity(*PAIRS[name], "float64", 1e-11)
    assert_leaves_close(gradients, expected, 1e-10)


def check_in_float32(name):
    """Gradients as one vector: a ReLU within rounding of 0 that opens in one framework alone moves single leaves."""
    gradients, expected = check_parity(*PAIRS[name], "float32", 2e-4)
    error = sum(np.square(gradients[leaf] - wanted).sum() for leaf, wanted in expected.items())
    assert error**0.5 < 0.03 * sum(np.square(wanted).sum() for wanted in expected.values()) ** 0.5


@pytest.mark.parametrize(
    ("module", "encoder", "train"),
    [
        pytest.param(basic, BASIC, True, marks=SLOW),
        pytest.param(bottleneck, BOTTLENECK, True, marks=pytest.mark.long),
        pytest.param(basic, BASIC, False, marks=SLOW),
        pytest.param(models.resnet18, nets.resnet18(), True, marks=pytest.mark.long),
    ],
)
def test_every_hidden_layer_is_what_a_hook_holds_after_the_pass(module, encoder, train):
    """torchvision's ReLU and residual addition work in place, and a hook keeps a view."""
    torch.manual_seed(0)
    module = randomise(module().train(train))
    x, variables, names = images("float32"), variables_of(module), encoder.hidden_layers()
    expected = hooked(module, channels_first(x), names)
    assert set(expected) == set(names)
    for name in names:
        features, _ = encoder.apply(variables, x, train=train, hidden_layer=name)
        assert_leaves_close({name: features}, {name: expected[name]}, 1e-4)
    assert (expected["bn1"] >= 0).all()
    assert (expected["layer2.0.downsample"] < 0).any()


@pytest.mark.parametrize("index", [0, 3, -2])
def test_an_index_is_an_index_into_the_children(index):
    child = list(dict(basic().named_children()))[index]
    variables = BASIC.init(jax.random.key(0), (32, 32, 3))
    shapes = [
        jax.eval_shape(partial(BASIC.apply, train=False, hidden_layer=layer), variables, images("float32", (32, 32)))[0]
        for layer in (index, child)
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("size", [(64, 47), (65, 65)])
def test_same_padding_is_tensorflows(size):
    torch.manual_seed(0)
    encoder = nets.resnet((2, 1, 1, 1), num_classes=7, padding="same")
    module = randomise(basic().eval())
    variables, x = variables_of(module), images("float32", size, 2)
    with torch.no_grad():
        own = module(torch.from_numpy(channels_first(x))).numpy()
        expected = with_same_padding(module)(torch.from_numpy(channels_first(x))).numpy()
    got, _ = jax.jit(partial(encoder.apply, train=False, hidden_layer=-1))(variables, x)
    assert_leaves_close({"output": got}, {"output": expected}, 1e-4)
    assert np.allclose(own, expected, atol=1e-4) == (size == (65, 65)), "65 pixels can't tell the two rules apart"


@pytest.mark.parametrize(
    ("module", "encoder"),
    [
        (basic, BASIC),
        (models.resnet18, nets.resnet18()),
        (models.resnet34, nets.resnet34()),
        (models.resnet50, nets.resnet50()),
        (models.resnet101, nets.resnet101()),
        (models.resnet152, nets.resnet152()),
        (models.wide_resnet50_2, nets.wide_resnet50_2()),
        (models.wide_resnet101_2, nets.wide_resnet101_2()),
        (models.resnext50_32x4d, nets.resnext50_32x4d()),
        (models.resnext101_32x8d, nets.resnext101_32x8d()),
        (models.resnext101_64x4d, nets.resnext101_64x4d()),
    ],
)
def test_names_and_shapes_are_torchvisions(module, encoder):
    with torch.device("meta"):
        module = module()
    assert list(encoder.hidden_layers()) == [name for name, _ in module.named_modules() if name]
    variables = jax.eval_shape(partial(encoder.init, image_shape=(64, 64, 3)), jax.random.key(0))
    leaf = {"scale": "weight", "kernel": "weight", "mean": "running_mean", "var": "running_var"}
    mine = {}
    for path, value in {**flatten(variables.params), **flatten(variables.stats)}.items():
        *branches, last = path.split("/")
        order = (3, 2, 0, 1) if len(value.shape) == 4 else tuple(reversed(range(len(value.shape))))
        mine[".".join([*branches, leaf.get(last, last)])] = tuple(value.shape[axis] for axis in order)
    assert mine == {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
