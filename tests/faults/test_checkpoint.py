"""Laws of checkpoints: what comes back is what was saved, to the last bit, or nothing comes back."""

import errno
import json
import os
import stat
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from checkpoint_states import as_bytes, assert_identical, small_state

from byol_jax import ConfigurationError, DamagedCheckpointError, checkpoint
from byol_jax.checkpoint import leaves
from byol_jax.tree import leaf_names

DTYPES = ["bool", "int4", "int8", "int16", "int32", "uint4", "uint8", "uint16", "uint32", "complex64"]
DTYPES += ["float8_e4m3fn", "float8_e5m2", "float8_e4m3b11fnuz", "float16", "bfloat16", "float32"]


def steps(directory):
    return sorted(int(path.name) for path in directory.iterdir())


def test_state_comes_back_bit_identical(tmp_path):
    state = small_state()
    folder = checkpoint.save(
        tmp_path / "new" / "checkpoints", state, position={"epoch": 2, "seen": [1, 2.5, None, "ä"]}
    )
    restored = checkpoint.restore(folder, like=state)
    assert_identical(restored.state, state)
    assert restored.position == {"epoch": 2, "seen": [1, 2.5, None, "ä"]}
    assert_identical(checkpoint.restore(folder.parent, like=jax.eval_shape(lambda: state)).state, state)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3, 5)])
def test_every_dtype_and_shape(tmp_path, dtype, shape):
    bits = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 7, size=shape)
    state = small_state().replace(opt_state={"leaf": jnp.asarray(bits).astype(dtype)})
    restored = checkpoint.restore(checkpoint.save(tmp_path, state), like=state)
    assert_identical(restored.state, state)


def test_bits_that_a_cast_would_lose(tmp_path):
    floats = np.array([0x7FC00001, 0xFFC12345, 0x7F800000, 0x80000000, 0x00000001], np.uint32).view(np.float32)
    state = small_state().replace(opt_state=(jnp.array(floats), jnp.array([2**31 - 1, -(2**31)], jnp.int32)))
    restored = checkpoint.restore(checkpoint.save(tmp_path, state), like=state)
    assert np.asarray(restored.state.opt_state[0]).tobytes() == floats.tobytes()
    assert_identical(restored.state, state)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_draw_the_same_afterwards(tmp_path, impl):
    state = small_state(impl=impl).replace(opt_state={"keys": jax.random.split(jax.random.key(1, impl=impl), (2, 3))})
    restored = checkpoint.restore(checkpoint.save(tmp_path, state), like=state).state
    assert_identical(restored, state)
    assert as_bytes(jax.random.normal(restored.key, (4,))) == as_bytes(jax.random.normal(state.key, (4,)))


def test_numpy_leaves_and_layouts(tmp_path):
    fortran = np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    state = small_state().replace(opt_state={"fortran": fortran, "sliced": np.arange(10, dtype=np.int32)[::3]})
    restored = checkpoint.restore(checkpoint.save(tmp_path, state), like=state).state
    np.testing.assert_array_equal(np.asarray(restored.opt_state["fortran"]), fortran)
    np.testing.assert_array_equal(np.asarray(restored.opt_state["sliced"]), [0, 3, 6, 9])


def test_float64_without_x64_is_refused_not_cast(tmp_path):
    state = small_state().replace(opt_state={"double": np.ones(2)})
    folder = checkpoint.save(tmp_path, state)
    with pytest.raises(DamagedCheckpointError, match=r"opt_state/double: float64\[2\].*x64"):
        checkpoint.restore(folder, like=state)


def test_float64_round_trip_with_x64(tmp_path):
    with jax.enable_x64(True):
        state = small_state(dtype=jnp.float64).replace(opt_state={"complex": jnp.ones(2, jnp.complex128)})
        restored = checkpoint.restore(checkpoint.save(tmp_path, state), like=state)
        assert_identical(restored.state, state)


def test_another_reader_finds_the_leaves_by_name(tmp_path):
    state = small_state()
    folder = checkpoint.save(tmp_path, state)
    (file,) = folder.glob("*.safetensors")
    tensors = safetensors.numpy.load_file(file)
    assert sorted(tensors) == sorted(leaf_names(state))
    kernel = tensors["online/params/encoder/conv1/kernel"]
    np.testing.assert_array_equal(kernel, np.asarray(state.online.params["encoder"]["conv1"]["kernel"]))
    manifest = json.loads((folder / "manifest.json").read_bytes())
    assert (manifest["step"], list(manifest["files"])) == (3, [file.name])
    assert manifest["leaves"]["key"] == {"dtype": "key", "shape": [], "impl": "threefry2x32"}


@pytest.mark.parametrize("devices", [1, 8])
def test_restored_state_may_be_donated_and_saved_state_too(tmp_path, devices):
    """Buffers that are shared, with each other or with what was read, would be overwritten by the step."""
    mesh = jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = jax.device_put(small_state(width=64), everywhere)
    expected = jax.tree.map(as_bytes, state)
    folder = checkpoint.save(tmp_path, state)
    like = jax.device_put(small_state(width=64), everywhere)
    double = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + leaf, tree), donate_argnums=0)
    for victim in (state, checkpoint.restore(folder, like=like).state):
        before = jax.tree.map(np.array, victim.online)
        after = jax.block_until_ready(double(victim.online))
        for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
            for shard in new.addressable_shards:
                np.testing.assert_array_equal(np.asarray(shard.data), old + old)
    assert jax.tree.map(as_bytes, checkpoint.restore(folder, like=like).state) == expected


def test_restored_where_like_is(tmp_path):
    mesh = jax.make_mesh((8,), ("data",))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    state = small_state().replace(opt_state={"rows": jnp.arange(16).reshape(16, 1)})
    like = jax.device_put(state, replicated)
    like = like.replace(opt_state=jax.device_put(like.opt_state, rows))
    folder = checkpoint.save(tmp_path, like)
    structs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), like)
    for wanted in (like, structs):
        restored = checkpoint.restore(folder, like=wanted).state
        assert_identical(restored, like)
        assert restored.key.sharding == replicated
        assert restored.online.params["encoder"]["fc"]["bias"].sharding == replicated
        assert restored.opt_state["rows"].sharding == rows
    assert not checkpoint.restore(folder, like=state).state.step.committed
    assert_identical(checkpoint.restore(folder, like=state).state, state)


@pytest.mark.parametrize(("keep", "left"), [(1, [50]), (3, [30, 40, 50]), (9, [10, 20, 30, 40, 50])])
def test_the_newest_are_kept(tmp_path, keep, left):
    for step in (10, 20, 30, 40, 50):
        checkpoint.save(tmp_path, small_state(step=step), keep=keep)
    assert steps(tmp_path) == left
    assert checkpoint.latest(tmp_path) == tmp_path / "00000050"


def test_all_are_kept_and_long_steps_sort_as_numbers(tmp_path):
    for step in (99_999_999, 100_000_000, 5, 200_000_000):
        checkpoint.save(tmp_path, small_state(step=step), keep=None)
    assert steps(tmp_path) == [5, 99_999_999, 100_000_000, 200_000_000]
    assert checkpoint.latest(tmp_path) == tmp_path / "200000000"


def test_a_run_that_was_set_back_keeps_what_it_writes(tmp_path):
    for step in (10, 20, 30):
        checkpoint.save(tmp_path, small_state(step=step))
    for step in (20, 30):
        next((tmp_path / f"{step:08d}").glob("*.safetensors")).write_bytes(b"")
    checkpoint.save(tmp_path, small_state(step=15), keep=1)
    assert steps(tmp_path) == [15, 20, 30]
    with pytest.warns(checkpoint.DamagedCheckpointWarning):
        assert checkpoint.latest(tmp_path) == tmp_path / "00000015"


def test_same_step_again_replaces(tmp_path):
    first, second = small_state(), small_state().replace(key=jax.random.key(8))
    folder = checkpoint.save(tmp_path, first, position=1)
    assert checkpoint.save(tmp_path, first, position=2) == folder
    assert checkpoint.restore(folder, like=first).position == 2
    checkpoint.save(tmp_path, second, position=3)
    restored = checkpoint.restore(folder, like=first)
    assert_identical(restored.state, second)
    assert len(list(folder.iterdir())) == 2
    assert steps(tmp_path) == [3]


def test_same_step_again_is_saved_where_older_files_cannot_be_removed(tmp_path, monkeypatch):
    """They stay beside the new one, nobody reads them, and the next save removes them."""
    first, second = small_state(), small_state().replace(key=jax.random.key(8))
    folder = checkpoint.save(tmp_path, first)

    def refuse(path, missing_ok=False):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refuse)
        assert checkpoint.save(tmp_path, second) == folder
    assert len(list(folder.iterdir())) == 3
    assert_identical(checkpoint.restore(folder, like=first).state, second)
    checkpoint.save(tmp_path, second)
    assert len(list(folder.iterdir())) == 2


def test_one_state_is_held_while_arrays_are_made_of_it(tmp_path, monkeypatch):
    """Of the bytes that were read: neither the file beside its leaves, nor leaves that are arrays already."""
    leaf = jnp.ones(250_000, jnp.float32)  # 1 MB
    state = small_state().replace(opt_state=[leaf] * 8)
    folder = checkpoint.save(tmp_path, state)
    held, real = [], leaves.from_bytes

    def from_bytes(data, entry, like):
        held.append(tracemalloc.get_traced_memory()[0])
        return jax.block_until_ready(real(data, entry, like))

    monkeypatch.setattr(leaves, "from_bytes", from_bytes)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        checkpoint.restore(folder, like=jax.eval_shape(lambda: state))
    finally:
        tracemalloc.stop()
    assert 7e6 < max(held) - before < 10e6
    assert held[-1] - before < 4e6


def test_same_step_again_repairs_a_damaged_one(tmp_path):
    folder = checkpoint.save(tmp_path, small_state())
    for path in folder.iterdir():
        path.write_bytes(b"?")
    checkpoint.save(tmp_path, small_state())
    assert_identical(checkpoint.restore(folder, like=small_state()).state, small_state())


def test_a_moved_or_renamed_checkpoint_restores(tmp_path):
    folder = checkpoint.save(tmp_path / "run", small_state())
    (tmp_path / "run").rename(tmp_path / "moved")
    best = tmp_path / "moved" / folder.name
    best = best.rename(tmp_path / "moved" / "best")
    assert_identical(checkpoint.restore(best, like=small_state()).state, small_state())


def test_permissions_are_the_directorys(tmp_path):
    tmp_path.chmod(0o750)
    folder = checkpoint.save(tmp_path, small_state())
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o750


def test_nothing_there(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    assert checkpoint.latest(tmp_path / "absent") is None
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(DamagedCheckpointError, match=r"no intact checkpoint in .*looked for manifest\.json"):
            checkpoint.restore(path, like=small_state())


BAD_ARGUMENTS = {
    "keep is zero": ({}, {"keep": 0}, "keep=0"),
    "keep is a bool": ({}, {"keep": True}, "keep=True"),
    "position is a tuple": ({}, {"position": (1, 2)}, "position="),
    "position is NaN": ({}, {"position": {"x": float("nan")}}, "position="),
    "position is a number of numpy's": ({}, {"position": np.int64(3)}, "position="),
    "position has number keys": ({}, {"position": {1: 2}}, "position="),
    "a leaf is a number": ({"opt_state": {"count": 3}}, {}, "not arrays: opt_state/count"),
    "two leaves, one name": ({"opt_state": {"a/b": np.ones(1), "a": {"b": np.ones(1)}}}, {}, "opt_state/a/b"),
    "replicated step": ({"step": np.ones(8, np.int32)}, {}, r"step must be one integer, found int32 of shape \(8,\)"),
    "floating step": ({"step": np.float32(1)}, {}, "step must be one integer"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_bad_arguments_before_anything_is_written(tmp_path, case):
    fields, options, message = BAD_ARGUMENTS[case]
    with pytest.raises(ConfigurationError, match=message):
        checkpoint.save(tmp_path / "new", small_state().replace(**fields), **options)
    assert not (tmp_path / "new").exists()


def kinds(state):
    leaves = zip(leaf_names(state), jax.tree.leaves(state), strict=True)
    return {name: (str(leaf.dtype), leaf.shape) for name, leaf in leaves}


def test_schema_drift_lists_every_difference(tmp_path):
    folder = checkpoint.save(tmp_path, small_state())
    like = small_state(width=6, optimizer=optax.sgd(0.1, momentum=0.9), impl="rbg")
    like = like.replace(step=jnp.zeros((), jnp.uint32))
    with pytest.raises(DamagedCheckpointError) as caught:
        checkpoint.restore(folder, like=like)
    message = str(caught.value)
    assert "step: int32[] in the checkpoint, uint32[] wanted" in message
    assert "key: key<fry>[] in the checkpoint, key<rbg>[] wanted" in message
    assert "\n" not in message
    stored, wanted = kinds(small_state()), kinds(like)
    different = {name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name)}
    assert {name for name in stored.keys() | wanted.keys() if f" {name}: " in message} == different
    assert f"{len(different)} difference(s)" in message


def test_a_directory_may_be_named_as_a_step_is(tmp_path):
    """A date, for instance."""
    directory, state = tmp_path / "20261130", small_state(step=7)
    checkpoint.save(directory, state)
    assert checkpoint.latest(directory) == directory / "00000007"
    assert_identical(checkpoint.restore(directory, like=state).state, state)
    (directory / "00000007" / "manifest.json").unlink()
    with pytest.raises(DamagedCheckpointError, match=r"00000007/manifest\.json: missing"):
        checkpoint.restore(directory / "00000007", like=state)
