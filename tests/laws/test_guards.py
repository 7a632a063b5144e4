"""What a run never does: transfer or wait unasked, meet a NaN that nobody asked for, be changed by a bad batch.

"Bad" is whatever isn't finite: pixels, loss, a gradient alone, running statistics alone; on one device of two as well.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from one_network import QUICKLY, batches, functions, learner_of, start, written

from byol_jax import Encoder, Variables, make_learner, nets, normalized_mse, parallel, pretrain
from byol_jax.metrics import feature_std, global_norm, stays_finite
from byol_jax.runs import tally
from byol_jax.train import loop
from byol_jax.tree import leaf_names

SHAPE = (16, 16, 3)
SMALL = {"image_size": 16, "projection_size": 8, "projection_hidden_size": 16}


def test_gradients_at_zero_vectors_and_constant_features_are_finite():
    zero, some = jnp.zeros((3, 4)), jnp.asarray(np.arange(12, dtype=np.float32).reshape(3, 4))

    @jax.jit
    def gradients():
        slope = jax.grad(lambda p, z: normalized_mse(p, z).sum(), (0, 1))
        of_loss = [slope(*pair) for pair in ((zero, some), (some, zero), (zero, zero))]
        return of_loss, [jax.grad(feature_std)(zero + level) for level in (0, 1)], jax.grad(global_norm)(zero)

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients()))
    assert jax.jit(feature_std)(zero + 1) == 0


def test_an_infinity_that_was_there_already_is_nobodys_fault():
    masked = {"mask": jnp.array([0.0, -jnp.inf]), "count": jnp.array(3)}
    assert stays_finite(masked, masked)
    assert stays_finite({}, {})
    assert not stays_finite(masked, masked | {"mask": jnp.array([jnp.nan, -jnp.inf])})


def hard_images():
    """[8, 16, 16, 3] uint8: black, white, grey, flat, a channel that is zero; then noise."""
    images = np.random.default_rng(0).integers(0, 256, (8, *SHAPE), np.uint8)
    images[0], images[1], images[2], images[3], images[4, ..., 0] = 0, 255, images[2, ..., :1], 7, 0
    return images


NETWORKS = {
    "small_cnn": lambda: nets.small_cnn((4,)),
    "resnet": lambda: nets.resnet((1,), width=8, stem="cifar", num_classes=3),
    "linen": lambda: written("linen", SHAPE, 0.1),
    "nnx": lambda: written("nnx", SHAPE, 0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize(("network", "dtype"), [("resnet", "bfloat16")])
def test_no_step_ends_in_a_nan_or_an_infinity(network, dtype):
    """JAX's own checks of every result, with the default augmentation. The other networks: the long test below."""
    learner = make_learner(NETWORKS[network](), dtype=jnp.dtype(dtype), **SMALL)
    state, step = learner.init(jax.random.key(0)), jax.jit(learner.step, compiler_options=QUICKLY)
    with jax.debug_nans(True), jax.debug_infs(True):
        for _ in range(4):
            state, metrics = step(state, hard_images())
    assert metrics["nonfinite"] == 0
    assert state.step == 4


@pytest.mark.long
def test_no_operation_within_a_step_gives_a_nan(share, figure):
    """Each operation that can make one, looked at on its own: what a `where` would hide from the check of results."""
    from jax.experimental import checkify

    def looked_at(function):
        return jax.jit(checkify.checkify(function, errors=checkify.nan_checks), compiler_options=QUICKLY)

    hidden = looked_at(lambda x: jnp.where(x == 0, 0, x / x))(jnp.zeros(()))[0]
    assert "nan" in str(hidden.get()), "the check itself sees nothing"
    cases = share([(network, dtype) for network in NETWORKS for dtype in ("float32", "bfloat16")])
    for network, dtype in cases:
        learner = make_learner(NETWORKS[network](), dtype=jnp.dtype(dtype), **SMALL)
        state, step = learner.init(jax.random.key(0)), looked_at(learner.step)
        for _ in range(4):
            error, (state, _) = step(state, hard_images())
            assert error.get() is None, (network, dtype)
    figure(
        "NaN within a step: every operation of forward, backward and update, on black, grey, flat and noisy images",
        cases=4 * len(cases),
        result="none",
    )


@pytest.mark.slow
def test_the_loop_transfers_nothing_unasked():
    learner = learner_of(written("functions", SHAPE), SHAPE, hidden_layer="drop")
    state, step = learner.init(jax.random.key(0)), jax.jit(learner.step, donate_argnums=0, compiler_options=QUICKLY)
    with pytest.raises(Exception, match="Disallowed host-to-device"), jax.transfer_guard("disallow"):
        jax.jit(learner.embed)(state, batches(SHAPE, 1)[0])  # a NumPy array: the guard does guard
    losses = []
    with jax.transfer_guard("disallow"):
        for batch in batches(SHAPE, 5):
            state, metrics = step(state, jax.device_put(batch))
            losses.append(metrics["loss"])
    assert np.isfinite(losses).all()
    assert state.step == 5


class Watched:
    """A metric that notes when the loop waits for it and when it fetches it; there is nothing else to do with it."""

    def __init__(self, value, made_at, seen):
        self.value, self.made_at, self.seen = value, made_at, seen

    def block_until_ready(self):
        self.seen.append(("wait", self.made_at))
        return self

    def __array__(self, dtype=None, copy=None):
        self.seen.append(("fetch", self.made_at))
        return np.asarray(self.value, dtype)


@pytest.mark.slow
def test_pretrain_fetches_metrics_where_it_logs_and_waits_for_old_ones_alone(tmp_path, monkeypatch):
    """On this backend the guard is blind to fetching, so the metrics are watched instead, in between by the step."""
    seen, real = [], parallel.jit

    def watched(learner, mesh, **options):
        step, count = real(learner, mesh, **options), 0

        def stepping(state, batch):
            nonlocal count
            state, metrics = step(state, batch)
            count += 1
            seen.append(("step", count))
            return state, {name: Watched(value, count, seen) for name, value in metrics.items()}

        return SimpleNamespace(lower=lambda *words: SimpleNamespace(compile=lambda compiler_options: stepping))

    monkeypatch.setattr(loop.parallel, "jit", watched)
    images = np.random.default_rng(0).integers(0, 256, (19, *SHAPE), np.uint8)
    options = SMALL | {"augment_fn": lambda key, image: image, "progress": False, "batch_size": 8}
    pretrain(
        nets.small_cnn((4,)), images, out=tmp_path / "run", steps=60, log_every=30, checkpoint_every=100, **options
    )
    now, fetched = 0, []
    for what, made_at in seen:
        now = made_at if what == "step" else now
        if what == "wait":
            assert made_at == now - tally.STEPS_AHEAD
        if what == "fetch" and (now, made_at) not in fetched:
            fetched.append((now, made_at))
    early = tally.NONFINITE_LIMIT + tally.STEPS_AHEAD
    assert sorted({at for at, _ in fetched}) == [early, 30, 30 + early, 60]
    assert sorted(made_at for _, made_at in fetched) == list(range(1, 61))
    assert all(made_at <= at - tally.STEPS_AHEAD for at, made_at in fetched if at in (early, 30 + early))


MARK = 0.123
"""First pixel of an image whose loss is finite and whose gradient isn't."""


def trapped() -> Encoder:
    """The network as functions, with √(w² m), m = 0 for marked images: its value is 0 there, its gradient 0 · ∞."""
    plain = functions()

    def init(key, shape):
        params, stats = start(shape)
        return Variables(params | {"w": jnp.ones(())}, stats)

    def apply(variables, images, *, train, **options):
        params, stats = variables
        features, stats = plain.apply(Variables(params, stats), images, train=train, **options)
        marked = jnp.abs(images[:, 0, 0, 0] - jnp.asarray(MARK, images.dtype)) < 1e-6  # [N]
        trap = jnp.sqrt(params["w"] ** 2 * jnp.where(marked, 0, 1))[:, None, None, None]
        return features + trap - jax.lax.stop_gradient(trap), stats

    return Encoder(init, apply, lambda variables=None: ("drop",))


def spoilt():
    """Batches of four images, the last of them bad: the second of two devices has it."""
    good = batches(SHAPE, 1, count=4)[0]
    bad = {name: good.copy() for name in ("nan", "infinity", "overflow", "gradient alone", "statistics alone")}
    bad["nan"][3, 5, 5, 1], bad["infinity"][3, 5, 5, 1] = np.nan, np.inf
    bad["overflow"][3] = 3e38
    bad["gradient alone"][3, 0, 0, 0] = MARK
    bad["statistics alone"][3] *= 1e25
    return good, bad


def driven(driver, learner):
    """`step(state, batch)` on two devices, from a state on the host to one there."""
    devices = jax.devices()[:2]
    mesh = parallel.make_mesh(devices)
    if driver == "pmap":
        step = parallel.pmap(learner, devices)
        return lambda state, batch: step(parallel.stack(state, 2), parallel.split(batch, 2))
    step = {"jit": parallel.jit, "shard_map": parallel.shard_map}[driver](learner, mesh)
    return lambda state, batch: step(parallel.replicate(state, mesh), parallel.shard(batch, mesh))


@pytest.mark.slow
@pytest.mark.parametrize(("driver", "sync"), [("jit", None), ("pmap", None), ("shard_map", False)])
def test_a_bad_image_on_one_device_changes_the_counter_and_nothing_else_on_all(driver, sync):
    axis_name = None if driver == "jit" else parallel.AXIS
    options = {"hidden_layer": "drop", "axis_name": axis_name, "sync_batchnorm": sync}
    learner = learner_of(trapped(), SHAPE, augment_fn2=lambda key, image: 1 - image, **options)
    state = learner.init(jax.random.key(0))
    step, (good, bad) = driven(driver, learner), spoilt()
    before = jax.tree.map(np.asarray, state.replace(key=jax.random.key_data(state.key)))
    for name, batch in {"good": good, **bad}.items():
        after, metrics = step(state, batch)
        after = jax.tree.map(np.asarray, after.replace(key=jax.random.key_data(after.key)))
        assert (np.asarray(metrics["nonfinite"]) == (name != "good")).all(), name
        assert (after.step == 1).all()
        assert name != "gradient alone" or np.isfinite(metrics["loss"]).all()
        leaves = zip(leaf_names(before), jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        moved = [leaf for leaf, old, new in leaves if leaf != "step" and not (new == old).all()]
        assert bool(moved) == (name == "good"), (name, moved)


def test_parameters_that_the_optimiser_made_infinite_of_a_finite_gradient_are_counted():
    """Adam without a constant in its denominator divides 0 by 0 where a gradient is zero, as of kernels over black."""
    learner = make_learner(
        nets.small_cnn((4,)), optimizer=optax.adam(1e-3, eps=0.0), augment_fn=lambda key, image: image, **SMALL
    )
    state = learner.init(jax.random.key(0))
    state, metrics = jax.jit(learner.step, compiler_options=QUICKLY)(state, jnp.zeros((4, *SHAPE), jnp.uint8))
    assert np.isfinite(metrics["loss"])
    assert np.isfinite(metrics["grad_norm"])
    assert not np.isfinite(metrics["param_norm"])
    assert metrics["nonfinite"] == 1
