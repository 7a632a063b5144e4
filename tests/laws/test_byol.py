"""Laws of the learner: options, errors before any work, randomness, donation, what a step leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from byol_jax import (
    ConfigurationError,
    Encoder,
    HiddenLayerNotFoundError,
    Variables,
    encoder_variables,
    make_learner,
    nets,
)
from byol_jax.tree import leaf_names

SIZE = 16
SMALL = {"image_size": SIZE, "num_channels": 1, "projection_size": 8, "projection_hidden_size": 16}


def unchanged(key, image):
    return image


def flipped(key, image):
    return image[:, ::-1]


VIEWS = {"augment_fn": unchanged, "augment_fn2": flipped}


def images(count: int = 8, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(1).random((count, SIZE, SIZE, channels), np.float32)


def linear_encoder(width: int = 12, *, names: tuple[str, ...] = ()) -> Encoder:
    """A pair of pure functions: a projection of the flattened image, tanh, and a classifier that nothing uses."""

    def init(key, shape):
        first, second = jax.random.split(key)
        weight = 0.1 * jax.random.normal(first, (int(np.prod(shape)), width))
        return Variables({"w": weight, "fc": jax.random.normal(second, (width, 3))}, {"seen": jnp.zeros((), jnp.int32)})

    def apply(variables, x, *, train, hidden_layer, key=None, axis_name=None):
        hidden = jnp.tanh(x.reshape(len(x), -1) @ variables.params["w"])
        stats = {"seen": variables.stats["seen"] + 1} if train else variables.stats
        return (hidden if hidden_layer == "hidden" else hidden @ variables.params["fc"]), stats

    return Encoder(init, apply, lambda variables=None: names)


@pytest.mark.slow
def test_a_pair_of_functions_trains_and_unused_parameters_stay() -> None:
    optimizer = optax.adamw(1e-2, weight_decay=0.5)
    learner = make_learner(
        linear_encoder(names=("hidden", "fc")), hidden_layer="hidden", optimizer=optimizer, **SMALL, **VIEWS
    )
    state = learner.init(jax.random.key(0))
    after, metrics = jax.jit(learner.step)(state, images())
    before = state.online.params["encoder"]
    assert (after.online.params["encoder"]["fc"] == before["fc"]).all(), "weight decay reached an unused parameter"
    assert (after.online.params["encoder"]["w"] != before["w"]).any()
    assert not any("fc" in name for name in leaf_names(after.opt_state))
    assert after.online.stats["encoder"]["seen"] == 1
    assert 0 <= metrics["loss"] <= 8


@pytest.mark.slow
def test_networks_that_name_nothing_give_their_output() -> None:
    with pytest.raises(HiddenLayerNotFoundError, match="hidden_layer=-1"):
        make_learner(linear_encoder(), **SMALL, **VIEWS)
    learner = make_learner(linear_encoder(), hidden_layer=-1, **SMALL, **VIEWS)
    assert learner.embed(learner.init(jax.random.key(0)), images()).shape == (8, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"hidden_layer": "flat"}, "not found"),
        ({"hidden_layer": 40}, "not found"),
        ({"hidden_layer": True}, "not found"),
        ({"projection_size": 0}, "at least 1"),
        ({"projection_hidden_size": 2.5}, "at least 1"),
        ({"prediction_hidden_size": True}, "prediction_hidden_size=True: expected a whole number of at least 1"),
        ({"moving_average_decay": 1.5}, r"\[0, 1\]"),
        ({"views": "both"}, "concatenated"),
        ({"image_size": 0}, "image_size"),
        ({"image_size": "28"}, "image_size"),
        ({"image_size": None}, "image_size"),
        ({"moving_average_decay": "0.9"}, r"\[0, 1\]"),
        ({"sync_batchnorm": True}, "axis_name"),
        ({"dtype": jnp.int32}, "floating"),
        ({"dtype": jnp.float64}, "x64"),
        ({"normalize": (0.5,)}, "normalize"),
        ({"normalize": ((0.5, 0.5), (1.0, 1.0))}, "one a channel"),
        ({"normalize": (0.5, 0.0)}, "positive"),
        ({"normalize": (float("nan"), 1.0)}, "finite"),
        ({"dtype": "float23"}, "dtype='float23': expected a floating dtype"),
        ({"moving_average_decay": True}, r"\[0, 1\]"),
        ({"augment_fn": None}, "augment_fn2"),
        ({"augment_fn": "byol", "augment_fn2": None}, r"augment_fn='byol': expected a function \(key, image\)"),
        ({"image_size": (3, 4, 5), "augment_fn": None, "augment_fn2": None}, "channels|augment_fn"),
    ],
)
def test_a_wrong_argument_is_one_line(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        make_learner(nets.small_cnn(), **(SMALL | VIEWS | options))
    assert "\n" not in str(error.value)
    assert isinstance(error.value, ConfigurationError | HiddenLayerNotFoundError)


def imported_encoder(channels: int) -> Encoder:
    """An encoder whose weights are given, so that its number of channels is."""
    native = nets.small_cnn()
    variables = native.init(jax.random.key(3), (SIZE, SIZE, channels))
    return native._replace(init=lambda key, shape: variables)


def test_an_encoder_that_disagrees_about_channels_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="channels"):
        make_learner(imported_encoder(3), **SMALL, **VIEWS)


@pytest.mark.slow
def test_init_shares_no_buffer_and_is_donatable() -> None:
    encoder = imported_encoder(1)
    learner = make_learner(encoder, **SMALL, **VIEWS)
    for init in (learner.init, jax.jit(learner.init)):
        state = init(jax.random.key(0))
        pointers = [
            leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((state.online, state.target, state.opt_state))
        ]
        assert len(set(pointers)) == len(pointers)
        jax.jit(learner.step, donate_argnums=0)(state, images())
        given = encoder.init(None, (SIZE, SIZE, 1))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(given)), (
            "donation deleted the encoder's own weights"
        )


@pytest.mark.slow
def test_uint8_is_float_over_255() -> None:
    learner = make_learner(nets.small_cnn(), **SMALL, **VIEWS)
    state = learner.init(jax.random.key(0))
    whole = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 1), np.uint8)
    floats = whole.astype(np.float32) / np.float32(255)  # XLA multiplies by 1 / 255, which is one rounding away
    np.testing.assert_allclose(learner.embed(state, whole), learner.embed(state, floats), rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigurationError, match="dtype"):
        learner.embed(state, whole.astype(np.int32))


def test_a_step_that_isnt_finite_changes_only_the_counter() -> None:
    learner = make_learner(nets.small_cnn(), **SMALL, **VIEWS)
    state = learner.init(jax.random.key(0))
    bad = images()
    bad[3, 2, 1, 0] = np.nan
    after, metrics = jax.jit(learner.step)(state, bad)
    assert metrics["nonfinite"] == 1
    assert after.step == 1
    for part in ("online", "target", "opt_state"):
        for old, new in zip(jax.tree.leaves(getattr(state, part)), jax.tree.leaves(getattr(after, part)), strict=True):
            np.testing.assert_array_equal(old, new)


@pytest.mark.slow
def test_the_targets_decay_may_be_a_schedule_of_the_step_before() -> None:
    learner = make_learner(
        nets.small_cnn(), moving_average_decay=lambda step: jnp.where(step == 0, 1.0, 0.0), **SMALL, **VIEWS
    )
    start = learner.init(jax.random.key(0))
    step = jax.jit(learner.step)
    first, metrics = step(start, images())
    second, _ = step(first, images())
    assert metrics["decay"] == 1
    same = jax.tree.map(lambda a, b: bool((a == b).all()), first.target.params, start.target.params)
    assert all(jax.tree.leaves(same))
    followed = jax.tree.map(
        lambda a, b: bool((a == b).all()), second.target.params["encoder"], second.online.params["encoder"]
    )
    assert all(jax.tree.leaves(followed)), "the EMA must use the new online parameters"


def test_one_image_cant_train() -> None:
    learner = make_learner(nets.small_cnn(), **SMALL, **VIEWS)
    with pytest.raises(ValueError, match="batch of 1"):
        learner.step(learner.init(jax.random.key(0)), images(1))


@pytest.mark.slow
def test_simsiam_statistics_move_twice_and_there_is_no_target() -> None:
    learner = make_learner(nets.small_cnn(), use_momentum=False, **SMALL, **VIEWS)
    state, _ = jax.jit(learner.step)(learner.init(jax.random.key(0)), images())
    assert state.online.stats["encoder"]["1"]["num_batches_tracked"] == 2
    assert state.online.stats["projector"]["1"]["num_batches_tracked"] == 2
    assert state.online.stats["predictor"]["1"]["num_batches_tracked"] == 1
    assert state.target == Variables({}, {})
    with pytest.raises(ConfigurationError, match="target"):
        encoder_variables(state, "target")


@pytest.mark.slow
@pytest.mark.parametrize(("views", "updates"), [("concatenated", 1), ("separate", 2)])
def test_separate_views_move_the_statistics_twice(views: str, updates: int) -> None:
    learner = make_learner(nets.small_cnn(), views=views, **SMALL, **VIEWS)
    state, _ = jax.jit(learner.step)(learner.init(jax.random.key(0)), images())
    assert state.target.stats["encoder"]["1"]["num_batches_tracked"] == updates
    assert state.online.stats["predictor"]["1"]["num_batches_tracked"] == updates


@pytest.mark.slow
def test_views_are_drawn_for_each_sample_from_its_place_and_the_step() -> None:
    seen = []

    def noisy(key, image):
        seen.append(jax.random.key_data(key))
        return image + jax.random.normal(key, image.shape)

    learner = make_learner(linear_encoder(), hidden_layer=-1, augment_fn=noisy, **SMALL)
    state = learner.init(jax.random.key(0))
    batch = np.zeros((4, SIZE, SIZE, 1), np.float32)
    key = jax.random.fold_in(state.key, 5)
    _, aux = learner.loss(state.online.params, state, batch, key)
    features = aux.outputs.features
    assert len(np.unique(np.asarray(features), axis=0)) == 8, "two views of four samples must all differ"
    sample_key = jax.random.fold_in(key, 2)
    view = jax.random.normal(jax.random.fold_in(sample_key, 1), (SIZE, SIZE, 1))
    wanted = linear_encoder().apply(
        Variables(state.online.params["encoder"], {"seen": 0}), view[None], train=False, hidden_layer=-1
    )[0]
    np.testing.assert_allclose(features[4], wanted[0], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_bfloat16_computes_low_and_stores_high() -> None:
    learner = make_learner(nets.small_cnn(), dtype=jnp.bfloat16, **SMALL, **VIEWS)
    state, metrics = jax.jit(learner.step)(learner.init(jax.random.key(0)), images())
    floats = [
        leaf for leaf in jax.tree.leaves((state.online, state.target)) if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    assert {leaf.dtype for leaf in floats} == {jnp.dtype("float32")}
    assert "bf16" in str(jax.make_jaxpr(learner.step)(state, images()))
    assert np.isfinite(metrics["loss"])


def maps_encoder(pool: bool) -> Encoder:
    """A convolution whose output is a map, [N, H, W, C], or one of one pixel, [N, 1, 1, C]; "conv" names it too."""

    def init(key, shape):
        return Variables({"w": 0.3 * jax.random.normal(key, (3, 3, shape[-1], 6))}, {})

    def apply(variables, x, *, train, hidden_layer, key=None, axis_name=None):
        y = jax.lax.conv_general_dilated(
            x, variables.params["w"], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.tanh(y.mean((1, 2), keepdims=True) if pool else y), {}

    return Encoder(init, apply, lambda variables=None: ("conv",))


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("size", [SIZE, (SIZE, SIZE)], ids=["square", "pair"])
def test_an_output_of_maps_is_flattened_as_a_named_layer_is(pool: bool, size: object) -> None:
    options = SMALL | VIEWS | {"image_size": size}
    output, named = (make_learner(maps_encoder(pool), hidden_layer=layer, **options) for layer in (-1, "conv"))
    state = output.init(jax.random.key(0))
    maps, _ = maps_encoder(pool).apply(encoder_variables(state), images(), train=False, hidden_layer=-1)
    assert output.settings.image_shape == (SIZE, SIZE, 1)
    assert output.embed(state, images()).shape == (8, 6 if pool else 6 * 4 * 4)
    np.testing.assert_array_equal(output.embed(state, images()), maps.transpose(0, 3, 1, 2).reshape(8, -1))
    np.testing.assert_array_equal(output.embed(state, images()), named.embed(state, images()))
    assert jax.eval_shape(output.step, state, images())[1]["loss"].shape == ()


def test_a_pair_is_a_whole_input_shape_where_only_that_suits_even_for_maps() -> None:
    """[N, L, C] to [N, L, 6]: the output is flattened, and (16, 1) isn't taken for an image's height and width."""

    def apply(variables, x, *, train, hidden_layer, key=None, axis_name=None):
        if x.ndim != 3:
            raise ValueError("signals only")
        return jnp.tanh(x @ variables.params["w"]), {}

    encoder = Encoder(
        lambda key, shape: Variables({"w": jnp.ones((shape[-1], 6))}, {}), apply, lambda variables=None: ()
    )
    learner = make_learner(encoder, hidden_layer=-1, **SMALL | VIEWS | {"image_size": (SIZE, 1)})
    assert learner.settings.image_shape == (SIZE, 1)
    assert learner.settings.feature_size == 6 * SIZE


@pytest.mark.slow
def test_a_signal_is_an_input_too() -> None:
    """[N, L, C] with a 1-D convolution: a whole input shape, as a pair or with num_channels=None."""

    def init(key, shape):
        return Variables({"w": 0.3 * jax.random.normal(key, (5, shape[-1], 6))}, {})

    def apply(variables, x, *, train, hidden_layer, key=None, axis_name=None):
        if x.ndim != 3:
            raise ValueError("signals only")
        y = jax.lax.conv_general_dilated(
            x, variables.params["w"], (1,), "VALID", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return jnp.tanh(y).mean(1), {}

    encoder = Encoder(init, apply, lambda variables=None: ())
    options = {"hidden_layer": -1, "projection_size": 8, "projection_hidden_size": 16, "augment_fn": unchanged}
    signals = np.random.default_rng(0).normal(size=(4, 32, 2)).astype(np.float32)
    for size in ({"image_size": (32, 2)}, {"image_size": (32, 2), "num_channels": None}):
        learner = make_learner(encoder, augment_fn2=lambda key, x: x[::-1], **options, **size)
        state, metrics = jax.jit(learner.step)(learner.init(jax.random.key(0)), signals)
        assert learner.embed(state, signals).shape == (4, 6)
        assert np.isfinite(metrics["loss"])


@pytest.mark.slow
def test_compiles_once_with_schedules(caplog: pytest.LogCaptureFixture) -> None:
    from byol_jax import schedules

    learner = make_learner(
        nets.small_cnn(),
        moving_average_decay=schedules.target_decay(0.9, 10),
        optimizer=optax.adam(schedules.learning_rate(0.1, 256, 2, 10)),
        **SMALL,
        **VIEWS,
    )
    state, batch = learner.init(jax.random.key(0)), jnp.asarray(images())
    step = jax.jit(learner.step, donate_argnums=0)
    with jax.log_compiles(True):
        for _ in range(5):
            state, _ = step(state, batch)
    compiled = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Compiling")]
    assert len(compiled) == 1, compiled
    assert state.step == 5
