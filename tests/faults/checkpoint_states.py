"""Small training states for the tests of checkpoints; nothing is computed until a function is called."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from byol_jax import TrainState, Variables


def small_state(*, step=3, width=5, optimizer=None, impl="threefry2x32", dtype=jnp.float32):
    """What a learner carries, in miniature: nested params and stats, a typed key, a real optimiser's state."""
    generator = np.random.default_rng(step)

    def array(*shape):
        return jnp.asarray(generator.normal(size=shape), dtype)

    encoder = {"conv1": {"kernel": array(3, 3, 3, width)}, "fc": {"kernel": array(width, 4), "bias": array(4)}}
    stats = {"bn1": {"mean": array(width), "num_batches_tracked": jnp.int32(step)}}
    projector = {"0": {"kernel": array(4, 2)}}
    params = {"encoder": encoder, "projector": projector, "predictor": {"0": {"kernel": array(2, 2)}}}
    target = {"encoder": jax.tree.map(jnp.array, encoder), "projector": jax.tree.map(jnp.array, projector)}
    return TrainState(
        step=jnp.int32(step),
        key=jax.random.key(7, impl=impl),
        online=Variables(params, {"encoder": stats, "projector": {}, "predictor": {}}),
        target=Variables(target, {"encoder": jax.tree.map(jnp.array, stats), "projector": {}}),
        opt_state=(optimizer or optax.adam(1e-3)).init(params),
    )


def as_bytes(leaf):
    """dtype, shape and bits of a leaf, a key's implementation included."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf, kind = jax.random.key_data(leaf), str(jax.random.key_impl(leaf))
    else:
        kind = str(leaf.dtype)
    array = np.asarray(leaf)
    return kind, array.shape, array.tobytes()


def assert_identical(found, expected):
    """The same structure, and every leaf the same bit for bit."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert isinstance(one, jax.Array)
        assert as_bytes(one) == as_bytes(other)
