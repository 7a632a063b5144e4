"""Small training states for the tests of checkpoints; nothing is computed until a function is called."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from byol_jax import TrainState, Variables, parallel
from byol_jax.memory import fresh_array


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


def whole_state(*, step=3, seed=0):
    """A small state with leaves that four devices can share: keys, bytes that no file has a type for, float8s."""
    generator = np.random.default_rng(seed)
    more = {
        "keys": jax.random.split(jax.random.key(seed), (4, 3)),
        "quarters": jnp.asarray(generator.integers(-7, 7, (3, 8)), jnp.int4),
        "columns": jnp.asarray(generator.normal(size=(3, 8)), jnp.bfloat16),
        "odd": jnp.asarray(generator.normal(size=(5, 3)), jnp.float8_e4m3fn),
    }
    state = small_state(step=step, width=8)
    target = jax.tree.map(lambda leaf: leaf + seed, state.target)
    return state.replace(target=target, opt_state=(state.opt_state, more))


def spread_state(mesh, *, step=3, seed=0):
    """The same on the devices of a mesh, every leaf of target and optimiser state in parts that can be, keys too."""
    state = whole_state(step=step, seed=seed)
    spread = parallel.spread_state(state, mesh, smallest=1)
    rows = NamedSharding(mesh, PartitionSpec(parallel.AXIS))
    data = np.asarray(jax.random.key_data(state.opt_state[1]["keys"]))
    keys = jax.random.wrap_key_data(fresh_array(data, rows))
    return spread.replace(opt_state=(spread.opt_state[0], spread.opt_state[1] | {"keys": keys}))
