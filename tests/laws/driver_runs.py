"""One learner under every driver: what test_drivers.py and test_replicas.py run and how they compare. No tests here."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from byol_jax import augment, make_learner, nets, parallel
from byol_jax.tree import leaf_names
from interop import from_torch_module

DRIVERS = ("jit", "pmap", "shard_map", "shard_map unchecked")
BATCH, SIZE, STEPS = 16, 16, 3
STATE, METRICS = 1e-9, 1e-6
"""Allowed differences, of float64 and of metrics, which are float32; measured over the whole product: see
docs/long.md."""
SMALL = nets.small_cnn((8,))


def light(key, image):
    """A random augmentation that compiles in a fraction of the default's time."""
    first, second = jax.random.split(key)
    brightness = jax.random.uniform(first, (), image.dtype, 0.6, 1.0)
    return augment.random_flip_left_right(second, image) * brightness


def learner(axis_name: str | None, *, encoder=SMALL, **options):
    sizes = {"projection_size": 16, "projection_hidden_size": 32, "dtype": jnp.float64, "image_size": SIZE}
    return make_learner(encoder, axis_name=axis_name, **(sizes | options))


@functools.cache
def traced():
    """A torch module with batch statistics in two places, as an encoder."""
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7), nn.BatchNorm1d(7)]
    return from_torch_module(nn.Sequential(*body, *head), image_size=SIZE)


def batches(steps: int = STEPS, *, uneven: bool = False) -> list[np.ndarray]:
    """uint8 images; `uneven`: each darker than the one before, so that devices see different statistics."""
    images = np.random.default_rng(0).integers(0, 256, (steps, BATCH, SIZE, SIZE, 3), np.uint8)
    shade = np.linspace(1, 0.05, BATCH)[:, None, None, None] if uneven else 1
    return list((images * shade).astype(np.uint8))


def initial(many):
    """The state of seed 0, compiled in one piece: leaf by leaf it takes seconds."""
    return jax.jit(many.init)(jax.random.key(0))


def whole(given=None, **options):
    """`jit` on the whole batch, without any of parallel.py: the state and metrics after every batch."""
    return trained(learner(None, **options), given)


def trained(one, given=None):
    """The same of one learner."""
    state, step, rows = initial(one), jax.jit(one.step), []
    for batch in batches() if given is None else given:
        state, metrics = step(state, batch)
        rows.append(on_host(metrics))
    return on_host(state), rows


def compiled(driver: str, many, mesh):
    """The step of `many` over a mesh, state and batch being global arrays."""
    if driver == "jit":
        return parallel.jit(many, mesh)
    return parallel.shard_map(many, mesh, check_vma=driver == "shard_map")


def spread(driver: str, devices: int, given=None, **options):
    """The same under `driver`: the state after the last batch and every batch's metrics, as the driver returns them."""
    chosen = jax.devices()[:devices]
    mesh = parallel.make_mesh(chosen)
    many = learner(None if driver == "jit" else parallel.AXIS, **options)
    state, rows = initial(many), []
    if driver == "pmap":
        step, place = parallel.pmap(many, chosen), lambda batch: parallel.split(batch, devices)
        state = parallel.stack(state, devices)
    else:
        step, place = compiled(driver, many, mesh), lambda batch: parallel.shard(batch, mesh)
        state = parallel.replicate(state, mesh)
    for batch in batches() if given is None else given:
        state, metrics = step(state, place(batch))
        rows.append(metrics)
    return state, rows


@contextlib.contextmanager
def double_and_quickly_compiled():
    """float64, and programs compiled in half the time. What is compared must be compiled alike: initial weights are
    drawn in float32, and their last digit depends on it."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        with jax.enable_x64(True):
            yield
    finally:
        jax.config.update("jax_disable_most_optimizations", before)


def numbers(leaf):
    """A leaf without its key type."""
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


def on_host(tree):
    return jax.tree.map(lambda leaf: np.asarray(numbers(leaf)), tree)


def of_each_device(driver: str, devices: int, tree) -> list:
    """What every device holds of a replicated tree: as many NumPy trees as there are devices."""

    def copies(leaf) -> list[np.ndarray]:
        leaf = numbers(leaf)
        if driver == "pmap":
            return list(np.asarray(leaf))
        assert leaf.is_fully_replicated
        return [np.asarray(shard.data) for shard in leaf.addressable_shards]

    held = [copies(leaf) for leaf in jax.tree.leaves(tree)]
    assert all(len(leaf) == devices for leaf in held)
    return [jax.tree.unflatten(jax.tree.structure(tree), [leaf[i] for leaf in held]) for i in range(devices)]


def assert_replicated(driver: str, devices: int, tree):
    """Bitwise equal on every device; returns the one value."""
    first, *others = of_each_device(driver, devices, tree)
    for number, other in enumerate(others, start=1):
        for name, left, right in zip(leaf_names(tree), jax.tree.leaves(first), jax.tree.leaves(other), strict=True):
            assert left.tobytes() == right.tobytes(), f"{name} differs between devices 0 and {number}"
    return first


def check_alike(ours, wanted) -> None:
    """Of two runs' states and metrics."""
    assert largest_difference(ours[0], wanted[0]) <= STATE
    assert largest_difference(ours[1], wanted[1]) <= METRICS


def largest_difference(ours, wanted) -> float:
    """Over all leaves, relative where a number is above 1 and absolute below."""
    worst = 0.0
    for name, left, right in zip(leaf_names(wanted), jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        assert (left.shape, left.dtype) == (right.shape, right.dtype), name
        left, right = np.asarray(left, np.float64), np.asarray(right, np.float64)
        worst = max(worst, float((np.abs(left - right) / np.maximum(np.abs(right), 1)).max(initial=0)))
    return worst
