"""Feature maps: `embed`'s numbers with their axes, channels last, of native, Flax, traced and one's own networks."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from byol_jax import from_linen, make_learner, nets
from byol_jax.hidden import FeatureLayout, feature_layout
from byol_jax.ops.pool import flatten_channels_first
from byol_jax.types import Encoder, Variables

SIZE = (16, 24)


def learner_of(encoder, hidden_layer, *, image_size=SIZE, channels=3):
    heads = {"projection_size": 4, "projection_hidden_size": 8, "optimizer": optax.sgd(0.1), "normalize": None}
    return make_learner(encoder, image_size=image_size, num_channels=channels, hidden_layer=hidden_layer, **heads)


def images(count=2, size=SIZE, channels=3):
    return np.random.default_rng(0).uniform(size=(count, *size, channels)).astype(np.float32)


def maps_and_rows(learner, x):
    state = learner.init(jax.random.key(0))
    found = np.asarray(jax.jit(learner.feature_map)(state, x))
    rows = np.asarray(jax.jit(learner.embed)(state, x))
    target = np.asarray(jax.jit(partial(learner.feature_map, which="target"))(state, x))
    np.testing.assert_array_equal(target, found)  # at the start both networks are one
    return found, rows


NATIVE = {
    "map of a ResNet": (nets.resnet((1, 1), width=8, num_classes=3, stem="cifar"), "layer2", (8, 12, 16)),
    "inside a block": (nets.resnet((1,), width=8, num_classes=3, stem="cifar"), "layer1.0.conv1", (16, 24, 8)),
    "pooled": (nets.resnet((1,), width=8, num_classes=3, stem="cifar"), "avgpool", (8,)),
    "map of small_cnn": (nets.small_cnn((4, 8)), "5", (4, 6, 8)),
    "flattened by small_cnn itself": (nets.small_cnn((4, 8)), "6", (4 * 6 * 8,)),
    "tokens": (nets.vit(1, width=8, num_heads=2, patch_size=8, num_classes=3), "encoder", (1 + 2 * 3, 8)),
    "patches": (nets.vit(1, width=8, num_heads=2, patch_size=8, num_classes=3), "conv_proj", (2, 3, 8)),
    "with remat": (nets.with_remat(nets.small_cnn((4, 8))), "5", (4, 6, 8)),
}


@pytest.mark.parametrize("what", ["map of small_cnn", "flattened by small_cnn itself"])
def test_a_small_networks_maps(what):
    check_native(what)


@pytest.mark.slow
@pytest.mark.parametrize("what", sorted(set(NATIVE) - {"map of small_cnn", "flattened by small_cnn itself"}))
def test_native_maps(what):
    check_native(what)


def check_native(what):
    encoder, layer, shape = NATIVE[what]
    found, rows = maps_and_rows(learner_of(encoder, layer), images())
    assert found.shape == (2, *shape)
    assert rows.shape == (2, np.prod(shape))
    np.testing.assert_array_equal(flatten_channels_first(found), rows)


@pytest.mark.slow
def test_maps_of_flax_modules_and_of_ones_own_functions():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Conv(5, (3, 3), strides=2)(x).mean((1, 2))

    learner = learner_of(from_linen(Net()), "Conv_0")
    found, rows = maps_and_rows(learner, images())
    assert found.shape == (2, 8, 12, 5)
    np.testing.assert_array_equal(flatten_channels_first(found), rows)

    def apply(variables, x, **_):
        return jnp.concatenate([x, 2 * x], axis=-1)[:, ::4, ::4] + variables.params["b"], {}

    own = Encoder(lambda key, shape: Variables({"b": jnp.zeros(())}, {}), apply, lambda variables=None: ())
    found, _ = maps_and_rows(learner_of(own, -1), images())
    np.testing.assert_array_equal(found, np.concatenate([images(), 2 * images()], axis=-1)[:, ::4, ::4])


@pytest.mark.slow
def test_a_native_network_whose_apply_is_somebodys_own():
    """The shapes are the network's where they fit, the numbers always the function's."""
    encoder = nets.small_cnn((4, 8))

    def scaled(*arguments, **options):
        features, stats = encoder.apply(*arguments, **options)
        return 3 * features, stats

    def cut(*arguments, **options):
        features, stats = encoder.apply(*arguments, **options)
        return features[:, :7], stats

    plain, _ = maps_and_rows(learner_of(encoder, "5"), images())
    found, _ = maps_and_rows(learner_of(encoder._replace(apply=scaled), "5"), images())
    np.testing.assert_allclose(found, 3 * plain, rtol=1e-6)
    found, rows = maps_and_rows(learner_of(encoder._replace(apply=cut), "5"), images())
    assert found.shape == (2, 7)
    np.testing.assert_array_equal(found, rows)


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True])
def test_traced_maps(channels_last):
    """torch's own, moved to channels last; those that compute with channels last stay as they are."""
    torch = pytest.importorskip("torch")
    import interop

    class Permuted(torch.nn.Module):
        def forward(self, x):
            return x.permute(0, 2, 3, 1)

    torch.manual_seed(0)
    last = Permuted() if channels_last else torch.nn.Identity()
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3, stride=4, padding=1), last, torch.nn.Flatten())
    encoder = interop.from_torch_module(module, image_size=SIZE)
    found, rows = maps_and_rows(learner_of(encoder, "1"), images())
    with torch.no_grad():
        theirs = module[:2](torch.from_numpy(images()).permute(0, 3, 1, 2)).numpy()
    wanted = theirs if channels_last else theirs.transpose(0, 2, 3, 1)
    assert found.shape == (2, 4, 6, 5)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    np.testing.assert_allclose(rows, theirs.reshape(2, -1), atol=1e-5)


SQUARE = (64, 64, 3)
LAYOUTS = [
    ((512,), SQUARE, (0,), False),
    ((17, 192), SQUARE, (0, 1), False),  # tokens
    ((32, 4, 4), SQUARE, (1, 2, 0), False),
    ((4, 4, 32), SQUARE, (0, 1, 2), False),  # Swin's
    ((8, 8, 8), SQUARE, (1, 2, 0), True),  # nobody can tell
    ((512, 1, 1), SQUARE, (1, 2, 0), False),
    ((1, 1, 512), SQUARE, (0, 1, 2), False),
    ((32, 8, 4), (64, 32, 3), (1, 2, 0), False),
    ((8, 4, 32), (64, 32, 3), (0, 1, 2), False),
    ((16, 5, 9), SQUARE, (1, 2, 0), False),  # neither: torch's custom
    ((8, 3, 7, 7), (12, 28, 28, 1), (1, 2, 3, 0), False),  # a volume's
    ((3, 7, 7, 8), (12, 28, 28, 1), (0, 1, 2, 3), False),
]


@pytest.mark.parametrize(("shape", "image_shape", "axes", "is_guess"), LAYOUTS)
def test_where_torch_has_its_channels(shape, image_shape, axes, is_guess):
    assert feature_layout(shape, of_torch=True, image_shape=image_shape) == FeatureLayout(shape, axes, is_guess)


def test_networks_with_channels_last():
    assert feature_layout((4, 6, 8), of_torch=False, image_shape=SQUARE) == FeatureLayout((8, 4, 6), (1, 2, 0))
    for shape in ((8,), (7, 8), (2, 3, 4, 5)):
        assert feature_layout(shape, of_torch=False, image_shape=SQUARE) == FeatureLayout(
            shape, tuple(range(len(shape)))
        )
