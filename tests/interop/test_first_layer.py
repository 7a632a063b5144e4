"""Weights for three channels in networks of others: timm's own numbers, the laws behind them, what is said."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import interop
from byol_jax import make_learner, nets
from byol_jax.errors import ConfigurationError, StateDictMismatchError
from interop.arrays import dtype_named
from interop.learners.fitting import own_arrays
from interop.trace.modules import torch_module
from interop.weights.first_layer import InflatedInputWarning, find_first_layers, inflate

torch = pytest.importorskip("torch")

CHANNELS = (1, 2, 4, 6, 13)


def variables_of(encoder, channels, size=16):
    return encoder.init(jax.random.key(0), (size, size, channels))


def features(encoder, variables, images):
    return encoder.apply(variables, jnp.asarray(images), train=False, hidden_layer=-1)[0]


def images(count=2, size=16, channels=3):
    return np.random.default_rng(1).uniform(size=(count, size, size, channels)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("channels", [*CHANNELS, 3])
def test_the_numbers_are_timms(channels, dtype):
    from timm.models._manipulate import adapt_input_conv

    weight = np.random.default_rng(0).standard_normal((8, 3, 7, 5)).astype(np.float32)
    theirs = adapt_input_conv(channels, torch.from_numpy(weight.copy()).to(getattr(torch, dtype)))
    ours = inflate(weight.astype(dtype_named(dtype)), channels)
    assert ours.dtype == dtype_named(dtype)
    np.testing.assert_array_equal(ours.astype(np.float32), theirs.float().numpy())


@pytest.mark.parametrize("channels", CHANNELS)
def test_equal_channels_give_what_three_gave(channels):
    """Of the rule itself: grey images, however many times they are repeated, look the same to the first layer."""
    weight = np.random.default_rng(0).standard_normal((4, 3, 2, 2, 2))
    equal = inflate(weight, channels).sum(axis=1)
    if channels % 3 == 0 or channels == 1:
        np.testing.assert_allclose(equal, weight.sum(axis=1), rtol=1e-12)
    turns = [weight[:, channel % 3] for channel in range(channels)]
    if channels > 1:
        np.testing.assert_allclose(equal, 3 / channels * np.sum(turns, axis=0), rtol=1e-12)


def test_what_a_first_layer_is():
    wanted = {"conv1.weight": (8, 5, 3, 3), "fc.weight": (2, 8), "bn.weight": (8,), "volume.weight": (8, 5, 3, 3, 3)}
    given = {"conv1.weight": (8, 3, 3, 3), "fc.weight": (2, 8), "bn.weight": (8,), "volume.weight": (8, 3, 3, 3, 3)}
    assert find_first_layers(given, wanted) == ["conv1.weight", "volume.weight"]
    for other in ((8, 3, 5, 5), (9, 3, 3, 3), (8, 4, 3, 3), (8, 3), (3,), ()):
        assert find_first_layers(given | {"conv1.weight": other, "volume.weight": other}, wanted) == []
    assert find_first_layers({"conv1.weight": (8, 3, 3, 3)}, {"conv1.weight": (8, 3, 3, 3)}) == []


@pytest.mark.parametrize("channels", [3, 5])
def test_a_width_of_three_is_no_first_layer(channels):
    """As a squeeze of three, and a group of three, in files of another network."""
    given = {"conv1.weight": (8, 3, 3, 3), "squeeze.weight": (8, 3, 1, 1), "group.weight": (8, 3, 3, 3)}
    wanted = {"conv1.weight": (8, channels, 3, 3), "squeeze.weight": (8, 4, 1, 1), "group.weight": (8, 2, 3, 3)}
    first = ["conv1.weight"] * (channels == 5)
    assert find_first_layers(given, wanted, channels=channels) == first
    assert find_first_layers(given, wanted) == [], "of several numbers none is known to be the images'"
    del given["group.weight"], wanted["group.weight"]
    assert find_first_layers(given, wanted, channels=channels) == first
    assert find_first_layers(given, wanted) == []


class Squeezing(torch.nn.Module):
    """A convolution whose channels are weighed by a squeeze and an excitation."""

    def __init__(self, channels, squeeze):
        super().__init__()
        self.stem = torch.nn.Conv2d(channels, 4, 3)
        self.down, self.up = torch.nn.Conv2d(4, squeeze, 1), torch.nn.Conv2d(squeeze, 4, 1)

    def forward(self, images):
        x = self.stem(images)
        return (x * self.up(self.down(x.mean((2, 3), keepdim=True))).sigmoid()).mean((2, 3))


@pytest.mark.slow
def test_a_traced_networks_squeeze_is_never_inflated():
    """It is refused with or without, and the hint names first layers alone."""
    three = {name: tensor.numpy() for name, tensor in Squeezing(3, 3).state_dict().items()}
    three["down.weight"], three["down.bias"] = three["down.weight"].repeat(2, 0)[:5], three["down.bias"].repeat(2)[:5]
    for channels, hint in ((3, "$"), (6, '; first_layer="inflate" makes stem.weight fit')):
        encoder = interop.from_torch_module(Squeezing(channels, 5), image_size=8, channels=channels, verify=False)
        like, weights = variables_of(encoder, channels, 8), interop.open_weights(three)
        with pytest.raises(StateDictMismatchError, match=f"up.weight [^;]*{hint}"):
            weights.variables(encoder, like=like)
        with pytest.raises(StateDictMismatchError, match=r"1 wrong shape: up.weight [^;]*$"):
            weights.variables(encoder, like=like, first_layer="inflate")
        with pytest.raises(ConfigurationError, match="first_layer 'inflated' isn't known"):
            weights.variables(encoder, like=like, first_layer="inflated")


def traced(channels):
    return interop.from_torch_module(tiny_module(channels), image_size=8, channels=channels, verify=False)


@pytest.mark.parametrize(
    ("make", "layout", "name"),
    [
        (lambda channels: nets.small_cnn((4,)), "byol_pytorch", "0.weight"),
        pytest.param(lambda channels: nets.small_cnn((4,)), "solo_learn", "0.weight", marks=pytest.mark.slow),
        pytest.param(
            lambda channels: nets.resnet((1, 1, 1, 1), width=8, num_classes=None),
            "lightly",
            "conv1.weight",
            marks=pytest.mark.slow,
        ),
        pytest.param(traced, "byol_pytorch", "0.weight", marks=pytest.mark.slow),
    ],
    ids=["native", "solo-learn", "lightly", "traced"],
)
def test_a_whole_learner_starts_heads_and_both_networks(tmp_path, make, layout, name):
    """Of a learner of three channels: both first layers are inflated, and all else is what a learner of three loads."""
    import optax

    encoders = {channels: make(channels) for channels in (3, 5)}
    sizes = {"image_size": 8, "hidden_layer": -1, "projection_size": 4, "projection_hidden_size": 4}
    of_three, of_five = (
        make_learner(encoder, num_channels=channels, optimizer=optax.identity(), **sizes)
        for channels, encoder in encoders.items()
    )
    trained, state = of_three.init(jax.random.key(1)), of_five.init(jax.random.key(2))
    halves = jax.tree.map(lambda leaf: leaf / 2, trained.target.params)
    trained = trained.replace(target=trained.target._replace(params=halves))
    interop.save_byol_checkpoint(tmp_path / "three.pt", trained, layout=layout)
    with pytest.warns(InflatedInputWarning, match=f"^{name} is for 3 channels, and the images have 5") as caught:
        started = interop.open_weights(tmp_path / "three.pt").start(encoders[5], state)
    assert [one for one in caught if "alone" in str(one.message)] == []
    as_it_is = interop.load_byol_checkpoint(tmp_path / "three.pt", like=of_three.init(jax.random.key(3)))
    found, wanted = own_arrays(started), own_arrays(as_it_is)
    for network in ("online", "target"):
        key = f"{network}.encoder.{name}"
        np.testing.assert_array_equal(found.pop(key), inflate(wanted.pop(key), 5))
    assert found.keys() == wanted.keys()
    for key, array in found.items():
        np.testing.assert_array_equal(array, wanted[key], err_msg=key)
    assert jax.tree.structure(started) == jax.tree.structure(state)


def test_strict_unless_asked():
    encoder = nets.small_cnn((4,))
    file = interop.encoder_state_dict(encoder, variables_of(encoder, 3))
    like = variables_of(encoder, 5)
    with pytest.raises(
        StateDictMismatchError, match=r'1 wrong shape: 0.weight .*; first_layer="inflate" makes 0.weight'
    ):
        interop.from_torch_state_dict(file, like=like)
    with pytest.raises(StateDictMismatchError, match='first_layer="inflate"'):
        interop.open_weights(file).variables(encoder, like=like)
    with pytest.raises(ConfigurationError, match="first_layer 'inflated' isn't known"):
        interop.from_torch_state_dict(file, like=like, first_layer="inflated")


@pytest.mark.parametrize("channels", CHANNELS)
def test_a_native_network_asked_to(channels):
    encoder = nets.small_cnn((4,))
    file = interop.encoder_state_dict(encoder, variables_of(encoder, 3))
    with pytest.warns(InflatedInputWarning, match=f"^0.weight is for 3 channels, and the images have {channels}: "):
        variables = interop.from_torch_state_dict(file, like=variables_of(encoder, channels), first_layer="inflate")
    again = interop.encoder_state_dict(encoder, variables)
    np.testing.assert_array_equal(again.pop("0.weight"), inflate(file.pop("0.weight"), channels))
    for name, array in file.items():
        np.testing.assert_array_equal(again[name], array)


def test_what_fits_is_left_alone():
    encoder = nets.small_cnn((4,))
    file = interop.encoder_state_dict(encoder, variables_of(encoder, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        variables = interop.from_torch_state_dict(file, like=variables_of(encoder, 3), first_layer="inflate")
        for wrong in ({"0.weight": np.zeros((4, 3, 5, 5), np.float32)}, {"1.weight": np.zeros(7, np.float32)}):
            with pytest.raises(StateDictMismatchError, match="1 wrong shape"):  # and nothing is said of the first layer
                interop.from_torch_state_dict(file | wrong, like=variables_of(encoder, 5), first_layer="inflate")
    np.testing.assert_array_equal(interop.encoder_state_dict(encoder, variables)["0.weight"], file["0.weight"])


@pytest.mark.slow
def test_six_channels_that_are_twice_three_give_the_same_features():
    """Of a vision transformer under timm's names, of a ResNet, of one grey channel."""
    vit = nets.vit(1, width=8, num_heads=2, patch_size=8, num_classes=3)
    resnet = nets.resnet((1,), width=8, num_classes=3, stem="cifar")
    for encoder in (vit, resnet):
        colour = variables_of(encoder, 3)
        file = interop.encoder_state_dict(encoder, colour)
        if encoder is vit:
            from interop.weights.transformers import timm_key

            file = {timm_key(name): array for name, array in file.items()}
        x = images()
        expected = features(encoder, colour, x)
        cases = {6: (np.concatenate([x, x], axis=-1), expected)}
        grey = x[..., :1]
        cases[1] = (grey, features(encoder, colour, np.repeat(grey, 3, axis=-1)))
        for channels, (seen, wanted) in cases.items():
            with pytest.warns(InflatedInputWarning):
                own = interop.from_torch_state_dict(file, like=variables_of(encoder, channels), first_layer="inflate")
            np.testing.assert_allclose(features(encoder, own, seen), wanted, rtol=0, atol=2e-5)


def tiny_module(channels):
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(channels, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1)
    return torch.nn.Sequential(*layers, torch.nn.Flatten())


@pytest.mark.slow
def test_a_traced_network_starts_from_the_weights_for_three(tmp_path):
    """As `train --init-from` and `pretrain(init_from=)` start it, and with its own weights where they fit."""
    import optax

    encoder = interop.from_torch_module(tiny_module(6), image_size=8, channels=6)
    torch.save(tiny_module(3).state_dict(), tmp_path / "three.pt")
    learner = make_learner(
        encoder, image_size=8, num_channels=6, hidden_layer=-1, projection_size=4, projection_hidden_size=4,
        optimizer=optax.sgd(0.1),
    )  # fmt: skip
    weights = interop.open_weights(tmp_path / "three.pt")
    with pytest.warns(InflatedInputWarning, match="scaled by 3/6"):
        state = weights.start(encoder, learner.init(jax.random.key(0)))
    x = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        expected = tiny_module(3)(x).numpy()
    both = torch.cat([x, x], 1).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(learner.embed(state, both), expected, atol=1e-5)
    np.testing.assert_allclose(learner.embed(state, both, which="target"), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["squeezenet1_1", "mnasnet0_5"])
def test_torchvisions_networks_for_other_channels(name):
    """Random: the first convolution is torch's own, the rest torchvision's; the same for the same seed."""
    module, again = (torch_module(f"torchvision:{name}", channels=5, image_size=32, seed=1) for _ in range(2))
    three = torch_module(f"torchvision:{name}", channels=3, image_size=32, seed=1)
    first = next(one for one in module.modules() if isinstance(one, torch.nn.Conv2d))
    old = next(one for one in three.modules() if isinstance(one, torch.nn.Conv2d))
    assert (first.in_channels, first.stride, first.padding) == (5, old.stride, old.padding)
    assert (first.bias is None) == (old.bias is None)
    differing = []
    for (key, tensor), other in zip(module.state_dict().items(), three.state_dict().values(), strict=True):
        differing += [] if tensor.shape == other.shape and torch.equal(tensor, other) else [key]
        assert torch.equal(tensor, again.state_dict()[key])
    assert len(differing) in (1, 2)  # weight, and bias where there is one


@pytest.mark.slow
def test_torchvisions_weights_for_other_channels(monkeypatch, tmp_path):
    """Found where torchvision keeps what it downloaded; here it is a file of ours."""
    from torchvision import models

    three = models.squeezenet1_1()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    url = models.SqueezeNet1_1_Weights.DEFAULT.url
    torch.save(three.state_dict(), tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.warns(InflatedInputWarning, match=r"^torchvision:squeezenet1_1: features.0.weight is for 3 .* by 3/6"):
        six = torch_module("torchvision:squeezenet1_1", weights="DEFAULT", channels=6, image_size=32)
    with torch.no_grad():
        x = torch.rand(2, 3, 32, 32)
        torch.testing.assert_close(six.eval()(torch.cat([x, x], 1)), three.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_what_timm_did_to_its_weights_is_said(monkeypatch, tmp_path):
    import timm

    three = timm.create_model("test_resnet")
    torch.save(three.state_dict(), tmp_path / "net.pt")
    overlay = {"file": str(tmp_path / "net.pt"), "hf_hub_id": None}
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: create(*a, pretrained_cfg_overlay=overlay, **k))
    with pytest.warns(InflatedInputWarning, match=r"^timm:test_resnet: conv1.*weight is for 3 .* scaled by 3/6"):
        six = torch_module("timm:test_resnet", weights="DEFAULT", channels=6, image_size=32)
    with torch.no_grad():
        x = torch.rand(2, 3, 32, 32)
        torch.testing.assert_close(six.eval()(torch.cat([x, x], 1)), three.eval()(x), rtol=1e-4, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch_module("timm:test_resnet", weights="DEFAULT", channels=3, image_size=32)
        torch_module("timm:test_resnet", channels=6, image_size=32)


def test_a_module_that_has_no_first_convolution_of_three():
    from interop.trace.input_channels import say_what_timm_did, with_input_channels

    for module in (torch.nn.Linear(3, 4), torch.nn.Conv2d(4, 4, 3), torch.nn.Conv2d(3, 3, 3, groups=3)):
        with pytest.raises(ConfigurationError, match="mine: has no first convolution of 3 channels"):
            with_input_channels("mine", torch.nn.Sequential(module), 5, has_weights=False)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3))
    module.transform_input = True
    with pytest.raises(ConfigurationError, match="changes red, green and blue before its first convolution"):
        with_input_channels("mine", module, 5, has_weights=True)
    module.embed = torch.nn.Linear(12, 4)
    module.pretrained_cfg = {"input_size": (3, 32, 32), "first_conv": "embed"}
    with pytest.warns(InflatedInputWarning, match=re.escape("embed.weight, for 3 channels, fit 5: it starts random")):
        say_what_timm_did("mine", module, 5)
