"""Real networks: torchvision's weights into the native ones and back, and the tables of names."""

import jax
import numpy as np
import pytest
from weight_samples import assert_identical

from byol_jax import nets
from byol_jax.errors import StateDictMismatchError
from byol_jax.nets.cnn import torch_expression
from interop import from_torch_state_dict, load_state_dict, save_state_dict, to_torch_state_dict
from interop.weights.architectures import RESNETS, expected_shapes, recognise

torch = pytest.importorskip("torch")
models = pytest.importorskip("torchvision.models")


def like(encoder, image_shape=(64, 64, 3)):
    return jax.eval_shape(lambda key: encoder.init(key, image_shape), jax.random.key(0))


def as_arrays(module):
    """A module's state dict with every buffer made different from its initial value."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for number, (name, tensor) in enumerate(module.state_dict().items()):
            if name.endswith("num_batches_tracked"):
                tensor.fill_(2**31 - 1 - number)
            else:
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return {name: tensor.numpy().copy() for name, tensor in module.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_torchvision_weights_go_to_jax_and_back_bit_for_bit(name, tmp_path):
    module = models.get_model(name, weights=None)
    original = as_arrays(module)
    variables = from_torch_state_dict(module.state_dict(), like=like(getattr(nets, name)()), arch=name)
    state_dict = to_torch_state_dict(variables, arch=name)
    assert_identical(state_dict, original)
    save_state_dict(tmp_path / "net.pt", state_dict)
    fresh = models.get_model(name, weights=None)
    fresh.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True), strict=True)
    assert_identical({name: tensor.numpy() for name, tensor in fresh.state_dict().items()}, original)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet34", "resnet101", "resnet152", "wide_resnet50_2", "resnext50_32x4d"])
@pytest.mark.parametrize("ending", [".pt", ".safetensors", ".npz"])
def test_all_native_resnets_go_there_and_back_through_every_format(name, ending, tmp_path):
    module = models.get_model(name, weights=None)
    original = as_arrays(module)
    save_state_dict(tmp_path / f"net{ending}", module.state_dict())
    variables = from_torch_state_dict(load_state_dict(tmp_path / f"net{ending}"), like=like(getattr(nets, name)()))
    assert_identical(to_torch_state_dict(variables, arch=name), original)


def test_the_small_network_has_torchs_numeric_names_and_computes_the_same():
    encoder = nets.small_cnn()
    module = eval(torch_expression(), {"nn": torch.nn}).eval()
    for norm in (module[1], module[4], module[7]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    original = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
    variables = from_torch_state_dict(module.state_dict(), like=like(encoder, (28, 28, 1)))
    assert_identical(to_torch_state_dict(variables), original, ordered=False)
    images = np.random.default_rng(0).random((2, 28, 28, 1), np.float32)
    ours, _ = encoder.apply(variables, images, train=False, hidden_layer=-1)
    theirs = module(torch.from_numpy(images.transpose(0, 3, 1, 2))).detach().numpy()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_half_and_double_networks_stay_what_they_are(dtype):
    module = models.resnet18(weights=None).to(getattr(torch, dtype))
    variables = like(nets.resnet18())
    with pytest.raises(StateDictMismatchError, match=r"102 wrong dtype: bn1\.bias"):
        from_torch_state_dict(module.state_dict(), like=variables)
    floats = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype if leaf.dtype == np.float32 else leaf.dtype), variables
    )
    state_dict = to_torch_state_dict(from_torch_state_dict(module.state_dict(), like=floats), arch="resnet18")
    module.load_state_dict({name: from_bits(array) for name, array in state_dict.items()}, strict=True)
    assert state_dict["conv1.weight"].dtype.name == dtype


def from_bits(array):
    from interop.arrays import as_tensor

    return as_tensor(array)


def test_a_network_without_a_classifier_takes_a_whole_state_dict_when_asked():
    module = models.resnet18(weights=None)
    headless = like(nets.resnet18(num_classes=None))
    with pytest.raises(
        StateDictMismatchError, match=r"2 unexpected: fc\.weight, fc\.bias; head=\"drop\" leaves the file"
    ):
        from_torch_state_dict(module.state_dict(), like=headless)
    variables = from_torch_state_dict(module.state_dict(), like=headless, head="drop")
    assert_identical(*(to_torch_state_dict(one) for one in (variables, without_strictness(module, headless))))
    state_dict = to_torch_state_dict(variables, arch="resnet18")
    missing, unexpected = module.load_state_dict({name: from_bits(a) for name, a in state_dict.items()}, strict=False)
    assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])


def without_strictness(module, variables):
    return from_torch_state_dict(module.state_dict(), like=variables, strict=False)


def test_another_architecture_is_named_as_such():
    state_dict = models.resnet18(weights=None).state_dict()
    with pytest.raises(StateDictMismatchError, match=r"aren't the keys of resnet34; 96 missing: layer1\.2\.conv1"):
        from_torch_state_dict(state_dict, like=like(nets.resnet18()), arch="resnet34")


@pytest.mark.parametrize("name", RESNETS)
def test_the_tables_are_torchvisions(name):
    with torch.device("meta"):
        module = models.get_model(name, weights=None)
    shapes = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    assert list(expected_shapes(name).items()) == list(shapes.items())
    assert recognise(shapes) == f"torchvision {name}"


@pytest.mark.parametrize(
    ("name", "change", "kind"),
    [
        (
            "resnet18",
            lambda shapes: {k: s for k, s in shapes.items() if "fc" not in k},
            "torchvision resnet18 without fc",
        ),
        ("resnet18", lambda shapes: shapes | {"conv1.weight": (64, 1, 7, 7)}, "torchvision resnet18"),
        ("resnet18", lambda shapes: shapes | {"conv1.weight": (64, 3, 3, 3)}, "ResNet of unknown depth or width"),
        (
            "resnet18",
            lambda shapes: {f"online_encoder.net.{k}": s for k, s in shapes.items()},
            "BYOL learner, byol-pytorch",
        ),
        ("resnet50", lambda shapes: {}, "unknown"),
    ],
)
def test_variations_are_recognised_for_what_they_are(name, change, kind):
    assert recognise(change(expected_shapes(name))) == kind


def test_cut_resnets_are_named():
    with torch.device("meta"):
        module = torch.nn.Sequential(*list(models.resnet18(weights=None).children())[:-1])
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    assert recognise(shapes) == "ResNet cut with Sequential"
