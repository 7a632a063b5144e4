"""Laws of the native vision transformers that need no other framework."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from byol_jax import ConfigurationError, HiddenLayerNotFoundError, Variables, make_learner, nets
from byol_jax.tree import flatten

TINY = {"width": 8, "num_heads": 2, "patch_size": 4, "num_classes": 5}


@cache
def tiny_variables():
    """Of `vit(1, **TINY)` for 3 channels and 8×12 pixels: the same leaves with any dropout, dtype or remat."""
    return nets.vit(1, **TINY).init(jax.random.key(0), (8, 12, 3))


def tiny_shapes(height=8):
    """The same, without drawing or compiling anything."""
    encoder = nets.vit(1, **TINY)
    return jax.eval_shape(partial(encoder.init, image_shape=(height, max(height, 12), 3)), jax.random.key(0))


def images(count=2, height=8, width=12, channels=3):
    return np.random.default_rng(0).uniform(size=(count, height, width, channels)).astype(np.float32)


def shapes_of(encoder, size=224):
    return flatten(jax.eval_shape(partial(encoder.init, image_shape=(size, size, 3)), jax.random.key(0)).params)


@pytest.mark.parametrize(
    ("encoder", "count"),
    [
        (nets.vit_s16(), 22_050_664),
        (nets.vit_b16(), 86_567_656),
        (nets.vit_b32(), 88_224_232),
        (nets.vit_l16(), 304_326_632),
    ],
)
def test_parameter_counts_of_published_networks(encoder, count):
    """torchvision's documentation, timm's for the small one."""
    assert sum(leaf.size for leaf in shapes_of(encoder).values()) == count


def test_positions_are_as_many_as_patches_and_one():
    shapes = shapes_of(nets.vit_b16(num_classes=None), 384)
    assert shapes["encoder/pos_embedding"].shape == (1, 577, 768)
    assert "heads/head/kernel" not in shapes
    assert tiny_shapes().params["encoder"]["pos_embedding"].shape == (1, 7, 8)


@pytest.mark.slow
def test_initialisation_is_torchvisions():
    encoder = nets.vit(2, width=64, num_heads=4, patch_size=8, num_classes=10)
    params = flatten(encoder.init(jax.random.key(0), (64, 64, 3)).params)
    layer = "encoder/layers/encoder_layer_1"
    for name, deviation in (("conv_proj/kernel", (8 * 8 * 3) ** -0.5), ("encoder/pos_embedding", 0.02)):
        np.testing.assert_allclose(params[name].std(), deviation, rtol=0.05)
    np.testing.assert_allclose(params[f"{layer}/mlp/3/bias"].std(), 1e-6, rtol=0.3)
    bounds = {"self_attention/key": (6 / 256) ** 0.5, "self_attention/out_proj": 64**-0.5, "mlp/0": (6 / 320) ** 0.5}
    for name, bound in bounds.items():
        kernel = params[f"{layer}/{name}/kernel"]
        assert np.abs(kernel).max() <= bound
        np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.05)
    for name in ("class_token", "heads/head/kernel", "conv_proj/bias", f"{layer}/self_attention/query/bias"):
        assert not params[name].any()
    kernels = [np.asarray(leaf).tobytes() for name, leaf in params.items() if "layers" in name and "kernel" in name]
    assert len(set(kernels)) == len(kernels), "two kernels start as the same numbers"


@pytest.mark.slow
def test_no_two_leaves_share_a_buffer():
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tiny_variables())]
    assert len(set(pointers)) == len(pointers), "donating the state would delete one leaf through another"


@pytest.mark.parametrize("num_classes", [5, None])
def test_the_layer_before_the_head_is_the_representation(num_classes):
    encoder = nets.vit(1, **TINY | {"num_classes": num_classes})
    top = [name for name in encoder.hidden_layers() if "." not in name]
    assert top == ["conv_proj", "encoder", "pooled", *([] if num_classes is None else ["heads"])]
    layer = -2 if num_classes else -1
    features, stats = jax.eval_shape(partial(encoder.apply, train=True, hidden_layer=layer), tiny_shapes(), images())
    assert features.shape == (2, 8)
    assert stats == {}


@pytest.mark.parametrize("own", [None, jnp.bfloat16])
def test_the_compute_dtype_is_the_networks_own_or_the_images(own):
    run = partial(nets.vit(1, dtype=own, **TINY).apply, train=True, hidden_layer=-1)
    given = jax.ShapeDtypeStruct((2, 8, 12, 3), jnp.float32 if own else jnp.bfloat16)
    assert jax.eval_shape(run, tiny_shapes(), given)[0].dtype == jnp.bfloat16


@pytest.mark.slow
def test_rematerialisation_changes_nothing():
    def gradient(remat):
        encoder = nets.vit(1, remat=remat, dropout=0.3, **TINY)
        run = partial(encoder.apply, images=images(), train=True, hidden_layer="encoder", key=jax.random.key(1))
        variables = tiny_variables()
        return jax.jit(jax.grad(lambda params: jnp.square(run(variables._replace(params=params))[0]).mean()))(
            variables.params
        )

    for plain, again in zip(jax.tree.leaves(gradient(False)), jax.tree.leaves(gradient(True)), strict=True):
        np.testing.assert_allclose(plain, again, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"dropout": 0.4}, {"attention_dropout": 0.4}])
def test_dropout_draws_from_its_key_in_training_alone_and_keeps_the_mean(options):
    encoder, plain = nets.vit(1, **TINY, **options), nets.vit(1, **TINY)
    layer = "encoder.dropout" if "dropout" in options else "encoder.layers.encoder_layer_0.self_attention"
    run = partial(encoder.apply, tiny_variables(), images(), hidden_layer=layer)
    drawn = jax.jit(jax.vmap(lambda key: run(train=True, key=key)[0]))(jax.random.split(jax.random.key(2), 4000))
    expected, _ = plain.apply(tiny_variables(), images(), train=True, hidden_layer=layer)
    np.testing.assert_array_equal(run(train=True, key=jax.random.key(3))[0], run(train=True, key=jax.random.key(3))[0])
    np.testing.assert_array_equal(run(train=False)[0], expected)
    assert not np.allclose(drawn[0], drawn[1])
    error = 5 * drawn.std(0) / 4000**0.5 + 1e-5
    assert (np.abs(drawn.mean(0) - expected) < error).all()
    if "dropout" in options:
        np.testing.assert_allclose((drawn == 0).mean(), 0.4, atol=0.01)
    with pytest.raises(ConfigurationError, match=r"dropout with rate 0\.4 in training needs a key"):
        run(train=True)


@pytest.mark.slow
def test_a_learner_around_it_trains_and_leaves_the_classifier_alone():
    learner = make_learner(
        nets.vit(1, dropout=0.1, **TINY),
        image_size=8,
        augment_fn=lambda key, image: image,
        projection_size=4,
        projection_hidden_size=8,
    )
    state = learner.init(jax.random.key(0))
    after, metrics = jax.jit(learner.step)(state, images(4, 8, 8))
    assert np.isfinite(metrics["loss"])
    before, now = (flatten(one.online.params["encoder"]) for one in (state, after))
    same = {name for name in now if np.array_equal(before[name], now[name])}
    assert same == {"heads/head/kernel", "heads/head/bias"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"width": 9}, "width=9: must be a multiple of num_heads=2"),
        ({"patch_size": 0, "num_classes": 0}, "patch_size=0, num_classes=0: must be whole numbers"),
        ({"mlp_width": 2.5}, "mlp_width=2.5"),
        ({"dropout": 1.0}, r"dropout=1\.0: must be a probability"),
        ({"attention_dropout": -0.1}, r"attention_dropout=-0\.1"),
    ],
)
def test_options_outside_their_range_are_refused(options, words):
    with pytest.raises(ConfigurationError, match=words):
        nets.vit(1, **TINY | options)


def test_images_that_do_not_fit_are_refused_at_trace_time():
    encoder, variables = nets.vit(1, **TINY), tiny_shapes()
    run = partial(encoder.apply, train=True, hidden_layer=-1)
    with pytest.raises(ConfigurationError, match=r"takes \[N, H, W, 3\]"):
        jax.eval_shape(run, variables, images(channels=1))
    with pytest.raises(ConfigurationError, match="9×12 pixels doesn't divide into patches of 4×4"):
        jax.eval_shape(run, variables, images(height=9))
    with pytest.raises(ConfigurationError, match="10 tokens, and the network has 7 positions"):
        jax.eval_shape(run, variables, images(height=12))
    with pytest.raises(ConfigurationError, match="height, width, channels"):
        encoder.init(jax.random.key(0), (8, 8))
    with pytest.raises(HiddenLayerNotFoundError, match=r"use one of .*encoder\.layers\.encoder_layer_0\.mlp\.3, "):
        encoder.apply(variables, images(), train=True, hidden_layer="encoder.layers.encoder_layer_0.mlp.9")


@pytest.mark.parametrize(
    ("variables", "size", "words"),
    [
        (Variables({}, {}), 8, "no encoder/pos_embedding"),
        (tiny_shapes(), 8, "7 positions: expected a class token's and those of a square"),
        (tiny_shapes(16), (8, 9), r"image_size=\(8, 9\): must be a multiple of the patches' 4"),
        (tiny_shapes(16), 0, "image_size=0"),
        (tiny_shapes(16), (8, 32), r"16 positions may be a grid of 4×4 or already one of 2×8: give from_size"),
    ],
)
def test_positions_that_cannot_be_resized_are_refused(variables, size, words):
    with pytest.raises(ConfigurationError, match=words):
        nets.resize_positions(variables, size)


def test_positions_of_images_that_are_not_square_are_resized_along_their_own_axes():
    """A ramp along the rows stays one along the rows: between its ends, where the border has no influence."""
    encoder = nets.vit(1, **TINY)
    variables = encoder.init(jax.random.key(0), (32, 8, 3))
    encoder_params = variables.params["encoder"]
    ramp = jnp.broadcast_to(jnp.arange(8.0)[:, None, None], (8, 2, 8)).reshape(1, 16, 8)
    positions = jnp.concatenate([encoder_params["pos_embedding"][:, :1], ramp], axis=1)
    variables = variables._replace(params=variables.params | {"encoder": encoder_params | {"pos_embedding": positions}})
    larger = nets.resize_positions(variables, (64, 16), from_size=(32, 8)).params["encoder"]["pos_embedding"]
    np.testing.assert_array_equal(larger[:, 0], positions[:, 0])
    rows = larger[0, 1:].reshape(16, 4, 8)
    np.testing.assert_allclose(
        rows[3:-3], np.broadcast_to(np.arange(16)[3:-3, None, None] / 2 - 0.25, (10, 4, 8)), atol=1e-5
    )
    assert nets.resize_positions(variables, (32, 8), from_size=(32, 8)) is variables
    with pytest.raises(ConfigurationError, match="17 positions: expected a class token's and those of from_size=8"):
        nets.resize_positions(variables, 16, from_size=8)
