"""Target and optimiser state spread over the devices: the numbers of whole ones, in less memory on each device."""

import logging
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from driver_runs import (
    BATCH,
    batches,
    check_alike,
    double_and_quickly_compiled,
    initial,
    learner,
    light,
    on_host,
    traced,
)
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AbstractMesh

from benchmarks.harness.table import markdown
from benchmarks.state_memory import state_rows
from byol_jax import TrainState, accumulate, lars, parallel, with_batchnorm_groups, with_online_probe
from byol_jax.ops.rows import cond_in_rows
from byol_jax.tree import leaf_names
from tests.source_code import ROOT

LABELS = np.arange(BATCH) % 3


def abstract(devices: int) -> AbstractMesh:
    return AbstractMesh((devices,), (parallel.AXIS,))


def state_of(leaf) -> TrainState:
    """The same leaf in every part of a state."""
    return TrainState(jnp.int32(0), jax.random.key(0), {"leaf": leaf}, {"leaf": leaf}, [leaf])


@given(st.lists(st.integers(0, 40), max_size=4), st.sampled_from([1, 2, 3, 8]), st.sampled_from([1, 100]))
def test_the_longest_axis_that_divides_is_cut_and_nothing_else(shape, devices, smallest):
    state = state_of(jax.ShapeDtypeStruct(tuple(shape), jnp.float32))
    places = parallel.state_shardings(state, abstract(devices), smallest=smallest)
    assert jax.tree.structure(places) == jax.tree.structure(state)
    assert places.target["leaf"] == places.opt_state[0]
    cut = places.target["leaf"].shard_shape(tuple(shape))
    candidates = [axis for axis, size in enumerate(shape) if size % devices == 0]
    if math.prod(shape) < smallest or not candidates or 0 in shape:
        assert cut == tuple(shape)
    else:
        axis = max(candidates, key=lambda axis: shape[axis])
        assert cut == (*shape[:axis], shape[axis] // devices, *shape[axis + 1 :])
    for leaf in (places.online["leaf"], places.step, places.key):
        assert leaf.is_fully_replicated


def test_keys_stay_whole():
    state = state_of(jax.random.split(jax.random.key(0), 8))
    assert parallel.state_shardings(state, abstract(8), smallest=1).opt_state[0].is_fully_replicated


def test_the_default_leaves_small_leaves_whole():
    kernel, bias = jnp.zeros((128, 128)), jnp.zeros(2**14 - 8)
    places = parallel.state_shardings(state_of({"kernel": kernel, "bias": bias}), abstract(8))
    assert places.opt_state[0]["bias"].is_fully_replicated
    assert places.opt_state[0]["kernel"].shard_shape(kernel.shape) == (16, 128)


def labelled(given):
    return [(images, LABELS) for images in given]


CASES = {
    "adam": (lambda: learner(None, augment_fn=light, optimizer=optax.adam(1e-3)), batches),
    "sgd": (lambda: learner(None, augment_fn=light, optimizer=optax.sgd(0.1, momentum=0.9, nesterov=True)), batches),
    "lars": (lambda: learner(None, augment_fn=light, optimizer=lars(0.2, weight_decay=1e-4)), batches),
    "traced": (lambda: learner(None, encoder=traced(), hidden_layer=-1, augment_fn=light), batches),
    "accumulate, lars": (
        lambda: accumulate(learner(None, augment_fn=light, optimizer=lars(0.2, weight_decay=1e-4)), 2),
        batches,
    ),
    "groups, a probe": (
        lambda: with_online_probe(with_batchnorm_groups(learner(None, augment_fn=light), 4), 3),
        lambda: labelled(batches()),
    ),
}


def trained(many, given, devices: int, *, spread: bool):
    """State and metrics under `parallel.jit`, on the host; with the state in parts as small as can be, or whole."""
    mesh, state, rows, options = parallel.make_mesh(jax.devices()[:devices]), initial(many), [], {}
    if spread:
        options["state_shardings"] = parallel.state_shardings(state, mesh, smallest=1)
        state = parallel.spread_state(state, mesh, smallest=1)
    else:
        state = parallel.replicate(state, mesh)
    step = parallel.jit(many, mesh, **options)
    for batch in given:
        state, metrics = step(state, parallel.shard(batch, mesh))
        rows.append(on_host(metrics))
        if spread:
            assert jax.tree.map(lambda leaf: leaf.sharding, state) == options["state_shardings"]
    return on_host(state), rows


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("adam", marks=pytest.mark.slow),
        pytest.param("sgd", marks=pytest.mark.long),
        pytest.param("lars", marks=pytest.mark.long),
        pytest.param("traced", marks=pytest.mark.long),
        pytest.param("accumulate, lars", marks=pytest.mark.slow),
        pytest.param("groups, a probe", marks=pytest.mark.slow),
    ],
)
def test_a_spread_state_gives_the_whole_ones_numbers(name):
    make, given = CASES[name]
    with double_and_quickly_compiled():
        many, given = make(), given()
        check_alike(trained(many, given, 8, spread=True), trained(many, given, 8, spread=False))


def held(device, state) -> int:
    """Bytes of a state's leaves on one device."""
    leaves = [jax.random.key_data(leaf) if leaf is state.key else leaf for leaf in jax.tree.leaves(state)]
    return sum(part.data.nbytes for leaf in leaves for part in leaf.addressable_shards if part.device == device)


@pytest.mark.slow
def test_memory_of_a_device_compilation_and_donation(caplog):
    """Each device holds what `state_bytes` says; XLA's own figures fall by as much; one program for all steps."""
    many = learner(None, augment_fn=light, projection_size=64, projection_hidden_size=512, dtype=jnp.float32)
    mesh, start = parallel.make_mesh(), initial(many)
    places = parallel.state_shardings(start, mesh)
    state, whole = parallel.spread_state(start, mesh), parallel.replicate(start, mesh)
    expected = parallel.state_bytes(start, places)
    assert {held(device, state) for device in mesh.devices.flat} == {expected}
    assert expected < 0.5 * held(mesh.devices.flat[0], whole)

    images = [parallel.shard(batch, mesh) for batch in batches()]
    compiled = {
        "spread": parallel.jit(many, mesh, state_shardings=places).lower(state, images[0]).compile(),
        "whole": parallel.jit(many, mesh).lower(whole, images[0]).compile(),
    }
    said = {name: step.memory_analysis() for name, step in compiled.items()}
    saved = held(mesh.devices.flat[0], whole) - expected
    assert said["whole"].argument_size_in_bytes - said["spread"].argument_size_in_bytes == saved
    total = {name: one.argument_size_in_bytes + one.temp_size_in_bytes for name, one in said.items()}
    assert total["spread"] < total["whole"]

    step = parallel.jit(many, mesh, state_shardings=places)
    with jax.log_compiles(True), caplog.at_level(logging.WARNING):
        for batch in images:
            before = state
            state, _ = step(state, batch)
            assert all(leaf.is_deleted() for leaf in jax.tree.leaves((before.target, before.opt_state)))
    steps = [record for record in caplog.records if record.getMessage().startswith("Compiling jit(step)")]
    assert len(steps) == 1
    assert {held(device, state) for device in mesh.devices.flat} == {expected}


@pytest.mark.long
def test_the_table_of_the_recipes_is_what_the_command_makes():
    assert markdown(state_rows()) in (ROOT / "docs" / "recipes.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(4, 8, 3, 3), (3, 3, 8, 4), (8, 3, 3, 3)])
def test_an_update_under_a_condition_takes_kernels_cut_along_any_axis(shape):
    """ops/rows.py makes rows of them, where the axis that is cut may be one of several that become one."""
    kernel = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    mesh = parallel.make_mesh()
    state = state_of(kernel)
    places = parallel.state_shardings(state, mesh, smallest=1)
    spread = parallel.spread_state(state, mesh, smallest=1).target["leaf"]
    assert not spread.is_fully_replicated

    def update(good, kernel):
        return cond_in_rows(good, lambda: jnp.tanh(kernel) * 2, lambda: kernel)

    step = jax.jit(update, out_shardings=places.target["leaf"])
    np.testing.assert_allclose(step(True, spread), np.tanh(kernel) * 2, rtol=1e-6)
    np.testing.assert_array_equal(step(False, spread), kernel)


def test_gather_and_replicate_bring_parts_together():
    mesh, leaf = parallel.make_mesh(), np.arange(48.0, dtype=np.float32).reshape(3, 16)
    spread = parallel.spread_state(state_of(leaf), mesh, smallest=1)
    assert spread.target["leaf"].addressable_data(0).shape == (3, 2)
    for name, back in zip(leaf_names(spread), jax.tree.leaves(parallel.gather(spread)), strict=True):
        if name not in ("step", "key"):
            np.testing.assert_array_equal(back, leaf)
    again = parallel.replicate(spread, mesh).target["leaf"]
    assert again.is_fully_replicated
    np.testing.assert_array_equal(again, leaf)
