"""Writing safetensors in shards: a set takes the place of another as a whole, whatever goes wrong in between."""

import os
import subprocess
import sys

import numpy as np
import pytest
from two_shards import FIRST, INDEX, SECOND, names
from weight_samples import assert_identical, small_state_dict

from byol_jax import ConfigurationError
from byol_jax.errors import CheckpointFormatError
from interop import load_state_dict, save_state_dict


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("most", [0, -1, 1.0, True, "5GB"])
def test_a_shards_size_is_a_positive_number(most, tmp_path):
    with pytest.raises(ConfigurationError, match="expected a number of bytes"):
        save_state_dict(tmp_path / "model.safetensors", {}, max_shard_bytes=most)
    assert names(tmp_path) == []


def test_only_safetensors_come_in_shards(tmp_path):
    with pytest.raises(ConfigurationError, match=r"only \.safetensors"):
        save_state_dict(tmp_path / "model.npz", {}, max_shard_bytes=10)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["model.safetensors", INDEX, SECOND])
def test_a_folder_in_the_way_is_left_alone(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(CheckpointFormatError, match=f"{name}: is a folder"):
        save_state_dict(tmp_path / "model.safetensors", small_state_dict(), max_shard_bytes=448)
    assert names(tmp_path) == [name]


def test_a_new_set_takes_the_old_ones_place(shards):
    folder, _ = shards
    (folder / "model-00001-of-00009.safetensors").write_bytes(b"somebody else's")
    new = small_state_dict(seed=1)
    save_state_dict(folder / "model.safetensors", new, max_shard_bytes=100)
    assert_identical(load_state_dict(folder), new)
    shards = [name for name in names(folder) if name not in (INDEX, "model-00001-of-00009.safetensors")]
    assert shards == [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    save_state_dict(folder / "model.safetensors", new, max_shard_bytes=10_000)
    assert names(folder) == ["model-00001-of-00009.safetensors", "model.safetensors"]
    save_state_dict(folder / "model.safetensors", new, max_shard_bytes=448)
    assert names(folder) == [FIRST, "model-00001-of-00009.safetensors", SECOND, INDEX]


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("most", [100, 448, 10_000])
def test_a_fault_at_any_moment_leaves_the_old_set_and_nothing_else(step, most, shards, monkeypatch):
    folder, _ = shards
    before, real = contents(folder), getattr(os, step)
    for moment in range(30):
        calls = iter(range(100))

        def faulty(*arguments, calls=calls, moment=moment, **named):
            if next(calls) == moment:
                raise OSError(28, "No space left on device")
            return real(*arguments, **named)

        monkeypatch.setattr(os, step, faulty)
        try:
            save_state_dict(folder / "model.safetensors", small_state_dict(seed=1), max_shard_bytes=most)
        except OSError:
            assert contents(folder) == before
        else:
            break
        finally:
            monkeypatch.undo()
    assert 0 < moment < 29
    assert_identical(load_state_dict(folder / "model.safetensors"), small_state_dict(seed=1), ordered=False)


KILLED = """
import os, sys
import numpy as np
from interop.files import save_state_dict
real, calls = os.replace, iter(range(100))
def killed(*paths):
    if next(calls) == int(sys.argv[2]):
        os.kill(os.getpid(), 9)
    real(*paths)
os.replace = killed
save_state_dict(sys.argv[1], {name: np.full(60, 2, np.float32) for name in "ab"}, max_shard_bytes=240)
"""


@pytest.mark.slow
def test_a_kill_within_the_exchange_never_mixes_two_sets(tmp_path):
    seen = set()
    for moment in range(8):
        folder = tmp_path / str(moment)
        folder.mkdir()
        state_dict = {name: np.ones(60, np.float32) for name in "ab"}
        save_state_dict(folder / "model.safetensors", state_dict, max_shard_bytes=240)
        arguments = [sys.executable, "-c", KILLED, str(folder / "model.safetensors"), str(moment)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        try:
            loaded = load_state_dict(folder / "model.safetensors")
        except CheckpointFormatError:
            seen.add("refused")
        else:
            values = {float(value) for array in loaded.values() for value in array}
            assert len(values) == 1
            seen.add(values.pop())
        if done.returncode == 0:
            break
    assert seen == {1.0, 2.0, "refused"}
    assert 3 <= moment < 8
