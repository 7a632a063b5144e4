"""Checkpoints of states that are spread over processes: each writes its part, and anybody reads the whole."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from checkpoint_states import assert_identical, small_state, spread_state, whole_state
from hypothesis import given
from hypothesis import strategies as st

from byol_jax import DamagedCheckpointError, checkpoint, parallel
from byol_jax.checkpoint.manifest import FileEntry, LeafEntry, Manifest, decode, encode
from byol_jax.checkpoint.parts import assemble, own_parts, writers
from tests.processes import free_address

HERE = Path(__file__).parent


def together(out, action, *, devices=2, timeout=150):
    """Both processes to their ends: exit codes, standard outputs, errors."""
    address = free_address()
    paths = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "JAX_PLATFORMS": "cpu"}
    environment["JAX_NUM_CPU_DEVICES"] = str(devices)
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / "save_in_parts.py"), str(number), address, str(out), action],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    try:
        ends = [process.communicate(timeout=timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [process.returncode for process in processes], [end[0] for end in ends], [end[1] for end in ends]


def names(directory):
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    """What two processes left and printed: first they save and restore, then one or the other fails."""
    out = tmp_path_factory.mktemp("parts")
    checkpoint.save(out / "failed", small_state(step=1), position="old")
    codes, outputs, errors = together(out, "live")
    assert codes == [0, 0], errors[0][-3000:] + errors[1][-3000:]
    return out, outputs


@pytest.mark.slow
def test_two_processes_write_their_parts_and_anybody_reads_the_whole(lived):
    directory = lived[0] / "saved"
    assert names(directory) == ["00000003", "00000004", "00000005"]
    manifests = {step: json.loads((directory / f"0000000{step}" / "manifest.json").read_bytes()) for step in (3, 4, 5)}
    assert [manifests[step]["version"] for step in (3, 4, 5)] == [2, 2, 1]
    assert "parts" not in manifests[5]
    assert len(manifests[5]["files"]) == 1
    wanted = whole_state(step=3, seed=5)
    folder = directory / "00000003"
    assert names(folder) == ["manifest.json", *sorted(manifests[3]["files"])], "the files that were replaced are gone"

    # In this process, with eight devices: whole on one, whole on each, and cut in eight.
    mesh = parallel.make_mesh()
    for like in (wanted, parallel.replicate(wanted, mesh), parallel.spread_state(wanted, mesh, smallest=1)):
        restored = checkpoint.restore(folder, like=like)
        assert_identical(restored.state, wanted)
        assert restored.position == "again"
        for one, other in zip(jax.tree.leaves(restored.state), jax.tree.leaves(like), strict=True):
            assert one.sharding.is_equivalent_to(other.sharding, one.ndim)

    # Every part of every leaf is in one file, and that of its process.
    files = [safetensors.numpy.load_file(folder / name) for name in manifests[3]["files"]]
    assert not set(files[0]) & set(files[1])
    assert all("[" in name for name in files[1]), "what isn't in parts is in the first"
    kernel = np.asarray(wanted.target.params["encoder"]["fc"]["kernel"])  # [8, 4], a quarter on each of four devices
    for number in (0, 1):
        starts = (4 * number, 4 * number + 2)
        found = [files[number][f"target/params/encoder/fc/kernel[{start}:{start + 2},0:4]"] for start in starts]
        np.testing.assert_array_equal(np.concatenate(found), kernel[4 * number : 4 * number + 4])
    own = manifests[3]["parts"]["target/params/encoder/fc/kernel"]
    assert list(own.values()) == [["0:2,0:4", "2:4,0:4"], ["4:6,0:4", "6:8,0:4"]]

    # A part that is altered, or gone, is named, and the checkpoint before is taken.
    second = folder / list(manifests[3]["files"])[1]
    data = bytearray(second.read_bytes())
    data[-1] ^= 1
    for damage in (lambda: second.write_bytes(data), second.unlink):
        damage()
        with pytest.raises(DamagedCheckpointError, match=second.name):
            checkpoint.restore(folder, like=wanted)


@pytest.mark.slow
def test_what_fails_in_one_process_is_raised_in_both_and_leaves_what_was_there(lived):
    directory = lived[0] / "failed"
    for number, output in enumerate(lived[1]):
        lines = [line for line in output.splitlines() if "Gloo" not in line]  # which prints at any time
        assert len(lines) == 8, output
        for line, process in zip(lines[:4], (1, 0, 0, 0), strict=True):
            where = "" if number == process else f" in process {process}"
            assert f"{errno.ENOSPC} [Errno {errno.ENOSPC}] checkpoint of step 9 not saved in {directory}" in line
            assert f": No space left on device{where}; earlier checkpoints are untouched; make room" in line
            assert line.endswith("or give a folder that all processes can write")
        errno_524, value, memory, configuration = lines[4:]
        assert f": Unknown error 524{'' if number == 1 else ' in process 1'}; earlier" in errno_524
        elsewhere = [
            "RuntimeError ['process 0: ValueError: two lines']",
            "RuntimeError ['process 1: MemoryError: no room']",
        ]
        elsewhere += ["ConfigurationError ['process 1: position=nan: give JSON']"]
        here = [
            "ValueError ['two', 'lines']",
            "MemoryError ['no room']",
            "ConfigurationError ['position=nan: give JSON']",
        ]
        found = [line.partition(": ")[2] for line in (value, memory, configuration)]
        own = (number == 0, number == 1, number == 1)
        assert found == [(here if mine else elsewhere)[case] for case, mine in enumerate(own)]
    assert names(directory) == ["00000001", "00000005"], "nothing temporary is left"
    assert_identical(checkpoint.restore(directory, like=whole_state()).state, whole_state(step=5))
    assert_identical(checkpoint.restore(directory / "00000001", like=small_state()).state, small_state(step=1))


@pytest.mark.parametrize("victim", [pytest.param(1, marks=pytest.mark.slow), pytest.param(0, marks=pytest.mark.long)])
def test_a_process_that_dies_while_it_saves_takes_the_other_with_it_and_no_checkpoint(tmp_path, victim):
    checkpoint.save(tmp_path, small_state(step=1))
    codes, _, errors = together(tmp_path, f"die {victim}")
    assert codes[victim] == -9
    assert codes[1 - victim] not in (0, None), errors[1 - victim][-3000:]
    assert [name for name in names(tmp_path) if not name.startswith(".tmp-")] == ["00000001"]
    assert_identical(checkpoint.restore(tmp_path, like=small_state()).state, small_state(step=1))
    checkpoint.save(tmp_path, small_state(step=2))
    assert names(tmp_path) == ["00000001", "00000002"], "the next save removes what the dead ones left"


def test_a_state_spread_in_one_process_is_saved_as_a_whole_one(tmp_path):
    """The same bytes, in the format that there was before."""
    state, mesh = whole_state(), parallel.make_mesh(jax.devices()[:4])
    one, other = checkpoint.save(tmp_path / "a", state), checkpoint.save(tmp_path / "b", spread_state(mesh))
    assert names(one) == names(other)
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in names(one))
    restored = checkpoint.restore(one, like=spread_state(mesh)).state
    assert_identical(restored, state)
    assert restored.opt_state[1]["keys"].sharding == spread_state(mesh).opt_state[1]["keys"].sharding


@given(st.data())
def test_any_cut_goes_together_again(data):
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    whole = np.arange(int(np.prod(shape)), dtype=np.int16).reshape(shape)

    def cut(box):
        """The box, or two halves of it, each cut again."""
        axes = [axis for axis, (start, stop) in enumerate(box) if stop - start > 1]
        if not axes or not data.draw(st.booleans()):
            return [box]
        axis = data.draw(st.sampled_from(axes))
        start, stop = box[axis]
        at = data.draw(st.integers(start + 1, stop - 1))
        return [piece for side in ((start, at), (at, stop)) for piece in cut((*box[:axis], side, *box[axis + 1 :]))]

    boxes = data.draw(st.permutations(cut(tuple((0, size) for size in shape))))
    parts = {
        ",".join(f"{start}:{stop}" for start, stop in box): whole[tuple(slice(*side) for side in box)].tobytes()
        for box in boxes
    }
    assert assemble(LeafEntry("int16", shape), parts) == whole.tobytes()
    parts.popitem()
    with pytest.raises(ValueError, match=rf"different ones, of {whole.size}"):
        assemble(LeafEntry("int16", shape), parts)


@pytest.mark.parametrize(
    "boxes",
    [("0:2,0:2", "1:3,0:2"), ("0:2,0:2", "3:5,0:2"), ("0:3,0:2", "1:2,0:2"), ("0:4,0:2", "1:2,0:2")],
    ids=["overlapping", "outside", "one within another", "too many"],
)
def test_parts_that_overlap_or_leave_something_out_are_refused(boxes):
    """Also where they have as many elements as the leaf."""
    sides = {box: [tuple(map(int, side.split(":"))) for side in box.split(",")] for box in boxes}
    parts = {box: np.ones([stop - start for start, stop in own], np.int16).tobytes() for box, own in sides.items()}
    with pytest.raises(ValueError, match=r"different ones, of 8$"):
        assemble(LeafEntry("int16", (4, 2)), parts)


def test_a_box_on_several_devices_is_written_once():
    mesh = jax.make_mesh((4, 2), ("rows", "copies"))
    leaf = jax.device_put(jnp.arange(8).reshape(8, 1), jax.NamedSharding(mesh, jax.P("rows")))
    assert list(writers(leaf).items()) == [("0:2,0:1", 0), ("2:4,0:1", 0), ("4:6,0:1", 0), ("6:8,0:1", 0)]
    own = own_parts(leaf)
    assert list(own) == list(writers(leaf))
    np.testing.assert_array_equal(np.concatenate(list(own.values())), leaf)


def test_a_manifest_with_parts_comes_back_and_one_without_is_as_it_was():
    leaves = {"target/kernel": LeafEntry("float32", (4,)), "step": LeafEntry("int32", ())}
    files = {f"state-{number}.safetensors": FileEntry("00", 1) for number in (0, 1)}
    parts = {"target/kernel": {"state-0.safetensors": ["0:2"], "state-1.safetensors": ["2:4"]}}
    manifest = Manifest(3, None, files, leaves, parts)
    assert decode(encode(manifest)) == manifest
    plain = json.loads(encode(manifest._replace(parts={})))
    assert (plain["version"], "parts" in plain) == (1, False)
