"""Whatever happens to a checkpoint's files: an error that names the file, and the newest intact one instead."""

import json
import random
import shutil
import warnings

import jax
import pytest
from checkpoint_states import assert_identical, small_state

from byol_jax import DamagedCheckpointError, checkpoint
from byol_jax.checkpoint import states

FILES = ["manifest.json", "*.safetensors"]


@pytest.fixture
def saved(tmp_path):
    """Two checkpoints in one directory: the directory, the older one, the newer one."""
    older = checkpoint.save(tmp_path, small_state(step=10), position=10)
    return tmp_path, older, checkpoint.save(tmp_path, small_state(step=20), position=20)


def check_refused_and_passed_over(directory, older, newer, file):
    """The newer one is refused and `file` named; the directory gives the older one, with a warning that names it."""
    with pytest.raises(DamagedCheckpointError) as caught:
        checkpoint.restore(newer, like=small_state())
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.warns(checkpoint.DamagedCheckpointWarning) as warned:
        assert checkpoint.latest(directory) == older
    assert [str(file) in str(warning.message) for warning in warned] == [True]
    with pytest.warns(checkpoint.DamagedCheckpointWarning):
        restored = checkpoint.restore(directory, like=small_state())
    assert_identical(restored.state, small_state(step=10))
    assert restored.position == 10


def test_one_flipped_bit_anywhere(saved):
    directory, older, newer = saved
    generator = random.Random(0)
    for pattern in FILES:
        (file,) = newer.glob(pattern)
        intact = file.read_bytes()
        bits = [0, 7, 8 * len(intact) - 1, *(generator.randrange(8 * len(intact)) for _ in range(25))]
        for bit in bits:
            altered = bytearray(intact)
            altered[bit // 8] ^= 1 << bit % 8
            file.write_bytes(altered)
            check_refused_and_passed_over(directory, older, newer, file)
        file.write_bytes(intact)
    assert checkpoint.latest(directory) == newer


@pytest.mark.long
def test_a_bit_of_every_byte_of_the_manifest(saved, share, figure):
    _, _, newer = saved
    file = newer / "manifest.json"
    intact = file.read_bytes()
    bits = share(range(8 * len(intact)))
    for bit in bits:
        altered = bytearray(intact)
        altered[bit // 8] ^= 1 << bit % 8
        file.write_bytes(altered)
        with pytest.raises(DamagedCheckpointError, match=r"manifest\.json"):
            checkpoint.restore(newer, like=small_state())
    figure("one bit of a checkpoint's manifest flipped", cases=len(bits), result="refused by name")


def test_cut_short_or_added_to_anywhere(saved):
    directory, older, newer = saved
    generator = random.Random(1)
    for pattern in FILES:
        (file,) = newer.glob(pattern)
        intact = file.read_bytes()
        lengths = [0, 1, 8, len(intact) - 1, *(generator.randrange(len(intact)) for _ in range(8))]
        for content in [*(intact[:length] for length in lengths), intact + b"\0", intact + b"\n", intact + intact]:
            file.write_bytes(content)
            check_refused_and_passed_over(directory, older, newer, file)
        file.write_bytes(intact)


@pytest.mark.parametrize("pattern", FILES)
def test_missing_file(saved, pattern):
    directory, older, newer = saved
    (file,) = newer.glob(pattern)
    file.unlink()
    check_refused_and_passed_over(directory, older, newer, file)


@pytest.mark.parametrize("pattern", FILES)
def test_a_folder_where_a_file_was(saved, pattern):
    directory, older, newer = saved
    (file,) = newer.glob(pattern)
    file.unlink()
    file.mkdir()
    check_refused_and_passed_over(directory, older, newer, file)


def test_data_files_swapped_between_checkpoints(saved):
    directory, older, newer = saved
    (one,), (other,) = older.glob("*.safetensors"), newer.glob("*.safetensors")
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    for folder, file in ((older, one), (newer, other)):
        with pytest.raises(DamagedCheckpointError, match=file.name):
            checkpoint.restore(folder, like=small_state())
    with pytest.warns(checkpoint.DamagedCheckpointWarning) as warned:
        assert checkpoint.latest(directory) is None
    assert len(warned) == 2
    with (
        pytest.warns(checkpoint.DamagedCheckpointWarning),
        pytest.raises(DamagedCheckpointError, match=f"no intact checkpoint.*{other.name}.*{one.name}"),
    ):
        checkpoint.restore(directory, like=small_state())


def test_manifests_swapped_between_checkpoints(saved):
    _, older, newer = saved
    first, second = (older / "manifest.json").read_bytes(), (newer / "manifest.json").read_bytes()
    (older / "manifest.json").write_bytes(second)
    (newer / "manifest.json").write_bytes(first)
    for folder in (older, newer):
        with pytest.raises(DamagedCheckpointError, match=str(folder)):
            checkpoint.restore(folder, like=small_state())


def test_whole_checkpoints_swapped(saved):
    directory, older, newer = saved
    older.rename(directory / "aside")
    newer.rename(older)
    (directory / "aside").rename(newer)
    for folder in (older, newer):
        with pytest.raises(DamagedCheckpointError, match=rf"manifest\.json: step .*name is {folder.name}"):
            checkpoint.restore(folder, like=small_state())


@pytest.mark.parametrize(
    "edit",
    [
        lambda fields: fields | {"step": 21},
        lambda fields: fields | {"position": {"epoch": 9}},
        lambda fields: fields | {"leaves": {}},
        lambda fields: fields | {"more": 1},
        lambda fields: {name: fields[name] for name in reversed(fields)},
        lambda fields: [fields],
        lambda fields: {},
        lambda fields: None,
    ],
)
def test_edited_manifest(saved, edit):
    directory, older, newer = saved
    file = newer / "manifest.json"
    file.write_text(json.dumps(edit(json.loads(file.read_bytes())), indent=1) + "\n")
    check_refused_and_passed_over(directory, older, newer, file)


def test_manifest_of_a_later_version_says_so(saved, monkeypatch):
    directory, _, _ = saved
    monkeypatch.setattr("byol_jax.checkpoint.manifest._VERSION", 3)
    folder = checkpoint.save(directory, small_state(step=30))
    monkeypatch.undo()
    with pytest.raises(DamagedCheckpointError, match=r"manifest\.json: .* version 3 found, .* version 1 or 2 expected"):
        checkpoint.restore(folder, like=small_state())


def test_empty_folder_under_a_steps_name(saved):
    directory, _, newer = saved
    empty = directory / "00000030"
    empty.mkdir()
    with pytest.raises(DamagedCheckpointError, match=r"00000030/manifest\.json: missing"):
        checkpoint.restore(empty, like=small_state())
    with pytest.warns(checkpoint.DamagedCheckpointWarning, match=r"00000030/manifest\.json: missing"):
        assert checkpoint.latest(directory) == newer


def test_whatever_else_lies_there_is_ignored(saved):
    directory, _, newer = saved
    (directory / "notes").mkdir()
    (directory / "00000031.bak").mkdir()
    (directory / "99").mkdir()
    (directory / "best.txt").write_text("20")
    (newer / "note.txt").write_text("the good one")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checkpoint.latest(directory) == newer
        assert_identical(checkpoint.restore(directory, like=small_state()).state, small_state(step=20))


def test_a_file_under_a_steps_name_is_passed_over(saved):
    directory, _, newer = saved
    (directory / "00000030").write_text("not a folder")
    with pytest.warns(checkpoint.DamagedCheckpointWarning, match="00000030"):
        assert checkpoint.latest(directory) == newer


def test_drift_is_not_damage(saved):
    """The newest intact checkpoint decides: another architecture is an error, not a reason to take an older one."""
    directory, _, newer = saved
    with pytest.raises(DamagedCheckpointError, match=f"{newer} doesn't fit"):
        checkpoint.restore(directory, like=small_state(width=6))
    assert_identical(checkpoint.restore(directory, like=jax.eval_shape(small_state)).state, small_state(step=20))


def test_a_checkpoint_vanishing_while_others_are_read(saved, monkeypatch):
    directory, older, newer = saved
    listing = states._step_folders

    def list_then_lose(path):
        found = listing(path)
        shutil.rmtree(newer, ignore_errors=True)
        return found

    monkeypatch.setattr(states, "_step_folders", list_then_lose)
    with pytest.warns(checkpoint.DamagedCheckpointWarning, match="missing"):
        assert checkpoint.latest(directory) == older
