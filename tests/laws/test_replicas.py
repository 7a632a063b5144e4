"""What devices share and what they don't: batch statistics in every part of the network, views, dropout.

Statistics are compared in float64 on images that get darker from device to device, so that a part which sees its own
device's only is far off: the mutants below say how far.
"""

from dataclasses import replace
from functools import cache, partial
from itertools import product

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from driver_runs import (
    BATCH,
    SIZE,
    batches,
    double_and_quickly_compiled,
    largest_difference,
    learner,
    on_host,
    traced,
)
from flax import nnx
from jax.sharding import PartitionSpec

from byol_jax import Encoder, Learner, Variables, from_linen, from_nnx, make_learner, nets, parallel, views

DEVICES = 4
SMALL = {"image_size": SIZE, "projection_size": 16, "projection_hidden_size": 32}


class LinenNet(nn.Module):
    axis_name: str | None

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(4, (3, 3), 2)(x)
        x = nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name)(x)
        return nn.Dense(7)(nn.relu(x).mean((1, 2)))


class NnxNet(nnx.Module):
    def __init__(self, axis_name: str | None):
        rngs = nnx.Rngs(0)
        self.conv = nnx.Conv(3, 4, (3, 3), 2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, axis_name=axis_name, rngs=rngs)
        self.dense = nnx.Linear(4, 7, rngs=rngs)

    def __call__(self, x):
        return self.dense(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))


ENCODERS = {
    "small_cnn": lambda axis_name: nets.small_cnn((8, 8)),
    "resnet": lambda axis_name: nets.resnet((1, 1), width=8, num_classes=10, stem="cifar"),
    "bottleneck": lambda axis_name: nets.resnet((1, 1), block="bottleneck", width=8, num_classes=10),
    "linen": lambda axis_name: from_linen(LinenNet(axis_name)),
    "nnx": lambda axis_name: from_nnx(NnxNet(axis_name)),
    "torch": lambda axis_name: traced(),
}


def made(name: str, axis_name: str | None, **options):
    return make_learner(
        ENCODERS[name](axis_name),
        hidden_layer=-1,
        axis_name=axis_name,
        augment_fn=lambda key, image: image,
        dtype=jnp.float64,
        **(SMALL | options),
    )


def statistics(loss, state, images: np.ndarray) -> dict:
    """New statistics of encoder, projector and predictor (online) and of the target's parts."""
    _, aux = loss(state.online.params, state, images, jax.random.key(0))
    return aux.online_stats | {f"target {name}": part for name, part in aux.target_stats.items()}


@cache
def of_the_whole_batch(name: str) -> tuple:
    """Images, a state, and the statistics that one device has of all of them; with double_and_quickly_compiled."""
    (images,), one = batches(1, uneven=True), made(name, None)
    state = jax.jit(one.init)(jax.random.key(0))
    return images, state, on_host(jax.jit(partial(statistics, one.loss))(state, images))


def on_each_device(loss, state, images: np.ndarray) -> list[dict]:
    """The same by every one of DEVICES devices, each with its part of the images."""

    def own(state, images):
        return jax.tree.map(lambda leaf: leaf[None], statistics(loss, state, images))

    mesh = parallel.make_mesh(jax.devices()[:DEVICES])
    spread = PartitionSpec(parallel.AXIS)
    run = jax.shard_map(own, mesh=mesh, in_specs=(PartitionSpec(), spread), out_specs=spread, check_vma=False)
    held = on_host(jax.jit(run)(state, images))
    return [jax.tree.map(lambda leaf, i=device: leaf[i], held) for device in range(DEVICES)]


def distances(parts: list[dict], wanted: dict) -> dict[str, float]:
    return {name: max(largest_difference(part[name], wanted[name]) for part in parts) for name in wanted}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small_cnn", "resnet", "linen", "nnx"])
def test_statistics_are_the_whole_batchs_in_every_part(name: str) -> None:
    check_statistics_are_the_whole_batchs(name)


def check_statistics_are_the_whole_batchs(name: str) -> float:
    with double_and_quickly_compiled():
        images, state, wanted = of_the_whole_batch(name)
        parts = on_each_device(made(name, parallel.AXIS).loss, state, images)
    assert set(wanted) == {"encoder", "projector", "predictor", "target encoder", "target projector"}
    found = distances(parts, wanted)
    assert max(found.values()) <= 1e-12, found
    return max(found.values())


@pytest.mark.slow
@pytest.mark.parametrize("part", ["encoder", "projector", "predictor"])
def test_a_part_that_is_not_synchronised_is_noticed(part: str) -> None:
    """The mutants for the test above: without the axis in one part, that part's statistics are far off."""
    with double_and_quickly_compiled():
        images, state, wanted = of_the_whole_batch("small_cnn")
        one, many = made("small_cnn", None), made("small_cnn", parallel.AXIS)
        deaf = {part: getattr(one.settings, part)}
        mutant = Learner(replace(many.settings, **deaf))
        found = distances(on_each_device(mutant.loss, state, images), wanted)
    assert found[part] > 1e-4, found
    before = {"encoder": (), "projector": ("encoder",), "predictor": ("encoder", "projector")}[part]
    assert all(found[name] <= 1e-12 for name in before), found


def drawn(driver: str, devices: int, dtype, images: np.ndarray, key) -> tuple[np.ndarray, ...]:
    """Both views of the whole batch, [N, H, W, C], drawn under a driver with the default augmentation."""
    many = learner(None if driver == "jit" else parallel.AXIS, dtype=dtype)
    mesh, spread = parallel.make_mesh(jax.devices()[:devices]), PartitionSpec(parallel.AXIS)
    run = partial(views.two_views, many.settings)
    if driver == "pmap":
        mapped = jax.pmap(run, parallel.AXIS, in_axes=(0, None), devices=jax.devices()[:devices])
        return tuple(np.asarray(view).reshape(images.shape) for view in mapped(parallel.split(images, devices), key))
    if driver != "jit":
        specs = {"in_specs": (spread, PartitionSpec()), "out_specs": spread}
        run = jax.shard_map(run, mesh=mesh, check_vma=driver == "shard_map", **specs)
    return tuple(np.asarray(view) for view in jax.jit(run)(parallel.shard(images, mesh), key))


def check_same_views(dtype, cases) -> float:
    """In float64 to 1e-12. In float32 to 2e-5, for 5e-6 was measured: hue and saturation divide by small numbers."""
    (images,), key = batches(1), jax.random.key(3)
    wanted = drawn("jit", 1, dtype, images, key)
    assert len(np.unique(np.concatenate(wanted).reshape(2 * BATCH, -1), axis=0)) == 2 * BATCH
    found = [largest_difference(drawn(driver, devices, dtype, images, key), wanted) for driver, devices in cases]
    assert max(found) <= (2e-5 if dtype == jnp.float32 else 1e-12)
    return max(found)


@pytest.mark.slow
def test_an_image_has_the_same_views_on_eight_devices() -> None:
    with jax.enable_x64(True):
        check_same_views(jnp.float64, [("shard_map", 8)])


def keys_of_devices(devices: int) -> np.ndarray:
    """[devices, 2]: the dropout key of each device in one step."""
    settings = learner(parallel.AXIS, dtype=jnp.float32).settings
    mesh, spread = parallel.make_mesh(jax.devices()[:devices]), PartitionSpec(parallel.AXIS)

    def own(key):
        return jax.random.key_data(views.dropout_key(settings, key))[None]

    return np.asarray(jax.shard_map(own, mesh=mesh, in_specs=PartitionSpec(), out_specs=spread)(jax.random.key(0)))


@pytest.mark.slow
def test_every_device_drops_other_units() -> None:
    keys = keys_of_devices(8)
    assert len({tuple(key) for key in keys}) == 8
    samples = jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))(jnp.arange(64))
    assert not {tuple(key) for key in keys} & {tuple(key) for key in np.asarray(jax.random.key_data(samples))}
    np.testing.assert_array_equal(keys[:4], keys_of_devices(4))


def noise() -> Encoder:
    """A network whose output is what it draws."""

    def apply(variables, images, *, train, hidden_layer, key=None, axis_name=None):
        drawn = jax.random.normal(key, (len(images), 8), images.dtype)
        return drawn * variables.params["scale"], {}

    return Encoder(lambda key, shape: Variables({"scale": jnp.ones(8)}, {}), apply, lambda variables=None: ())


@pytest.mark.slow
def test_networks_draw_other_numbers_on_every_device_and_in_either_pass() -> None:
    many = make_learner(noise(), hidden_layer=-1, axis_name=parallel.AXIS, **SMALL)
    state, spread = jax.jit(many.init)(jax.random.key(0)), PartitionSpec(parallel.AXIS)

    def features(state, images):
        return many.loss(state.online.params, state, images, jax.random.key(0))[1].outputs.features

    run = jax.shard_map(
        features, mesh=parallel.make_mesh(), in_specs=(PartitionSpec(), spread), out_specs=spread, check_vma=False
    )
    rows = np.asarray(jax.jit(run)(state, batches(1)[0]))  # [2N, 8]
    assert len(np.unique(rows, axis=0)) == 2 * BATCH


@pytest.mark.long
def test_views_and_statistics_under_everything(share, figure) -> None:
    names = share(list(ENCODERS))
    statistic = max(check_statistics_are_the_whole_batchs(name) for name in names)
    cases = share(list(product(("jit", "pmap", "shard_map", "shard_map unchecked"), (8, 4, 2, 1))))
    single = check_same_views(jnp.float32, cases)
    with jax.enable_x64(True):
        double = check_same_views(jnp.float64, cases)
    figure(
        "views of the same images under every driver and device count, default augmentation; batch statistics on"
        f" {DEVICES} devices of native, Linen and nnx networks in float64",
        cases=len(names) + 2 * len(cases),
        result=f"largest difference {single:.1e} (float32) and {double:.1e} (float64) in the views, {statistic:.1e} in"
        " the statistics",
    )
