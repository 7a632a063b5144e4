"""The list of images that lies beside a run: what it says is what a new look says, and what was touched is seen."""

import json
import os

import jax
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from byol_jax import DataError
from byol_jax.data import open_dataset
from byol_jax.data.files import survey
from byol_jax.data.files.file_list import Files, Listing, list_images
from byol_jax.data.files.kept_list import KeptList, encode_kept_list, load_kept_list
from byol_jax.data.files.scan import scan
from byol_jax.runs.source import Length, open_source

OPTIONS = {"image_size": 14, "num_channels": 1, "workers": 1}


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    for number in range(6):
        path = root / f"{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((20, 20), 40 * number, np.uint8)).save(path)
        os.utime(path, ns=(0, 10**18 + number))
    return root


@pytest.fixture
def kept(folder, tmp_path):
    path = tmp_path / "run" / "images.json"
    open_dataset(folder, verdict_path=path, **OPTIONS)
    return path


@pytest.fixture
def looked_at(monkeypatch):
    """Names of the files whose header was read."""
    check, names = survey.check_picture, []
    monkeypatch.setattr(survey, "check_picture", lambda path, reading: names.append(path.name) or check(path, reading))
    return names


def spoil(path):
    """As many other bytes, written now."""
    path.write_bytes(b"x" * path.stat().st_size)


def test_what_is_kept_is_what_a_new_look_finds(folder, kept, looked_at):
    first = open_dataset(folder, **OPTIONS)
    assert len(set(looked_at)) == 6
    looked_at.clear()
    again = open_dataset(folder, verdict_path=kept, **OPTIONS)
    assert looked_at == []
    assert (first.names, first.identity, first.skipped) == (again.names, again.identity, again.skipped)
    assert first.kept() == again.kept() == {".json": kept.read_bytes()}
    np.testing.assert_array_equal(first.take(range(6)), again.take(range(6)))


names = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=8)
numbers = st.integers(0, 2**63 - 1)


@given(
    st.dictionaries(names, st.tuples(numbers, numbers), min_size=1), st.lists(st.tuples(names, names)), st.booleans()
)
def test_a_list_of_any_names_sizes_and_times_comes_back(tmp_path_factory, files, skipped, knows_times):
    path = tmp_path_factory.mktemp("kept") / "images.json"
    columns = np.array([files[name] for name in sorted(files)], np.int64)
    listed = Files(tuple(sorted(files)), columns[:, 0], columns[:, 1] if knows_times else None)
    made = KeptList(listed, tuple(sorted(skipped)))
    path.write_bytes(encode_kept_list(made))
    again = load_kept_list(path, Listing(listed, (), ()), folder="a folder")
    assert (again.files.names, again.skipped) == (listed.names, made.skipped)
    np.testing.assert_array_equal(again.files.sizes, listed.sizes)
    assert (again.files.times is None) is not knows_times
    assert again.touched(Listing(listed, (), ())).tolist() == []
    assert encode_kept_list(again) == path.read_bytes()
    assert json.loads(path.read_bytes())["files"] == [[name, files[name][0]] for name in sorted(files)]


def test_pieces_that_are_written_one_by_one_are_one_list(monkeypatch):
    files = Files(tuple("abcdefg"), np.arange(7), np.arange(7))
    whole = encode_kept_list(KeptList(files, ()))
    for piece in (1, 3, 7, 8):
        monkeypatch.setattr("byol_jax.data.files.kept_list._PIECE", piece)
        assert encode_kept_list(KeptList(files, ())) == whole


@pytest.mark.parametrize("also", ["nothing", "one added", "one gone"])
def test_touched_files_alone_are_looked_at_and_their_times_are_kept(folder, kept, looked_at, also):
    before = json.loads(kept.read_bytes())
    for name in ("0/2.png", "1/5.png"):
        os.utime(folder / name)
    if also == "one added":
        (folder / "0/1.png").write_bytes((folder / "0/0.png").read_bytes())
    if also == "one gone":
        (folder / "0/0.png").unlink()
    dataset = open_dataset(folder, verdict_path=kept, **OPTIONS)
    assert sorted(looked_at) == ["2.png", "5.png"]
    assert dataset.notes[0].startswith("2 of 6 files were changed or copied since the first start")
    after = json.loads(dataset.kept()[".json"])
    assert after | {"times": ()} == before | {"times": ()}
    rows = [number for number, (old, new) in enumerate(zip(before["times"], after["times"], strict=True)) if old != new]
    assert [after["files"][row][0] for row in rows] == ["0/2.png", "1/5.png"]
    kept.write_bytes(dataset.kept()[".json"])
    looked_at.clear()
    assert open_dataset(folder, verdict_path=kept, **OPTIONS).notes == ()
    assert looked_at == []


def test_a_list_is_used_where_other_files_hide_its_images_today(tmp_path):
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.full((16, 16, 1), number, np.uint8))
    options = OPTIONS | {"verdict_path": tmp_path / "run" / "images.json"}
    before = open_dataset(tmp_path, **options)
    (tmp_path / "overview.png").symlink_to("nowhere")  # then .npy files are labels, and aren't listed
    assert open_dataset(tmp_path, **options).names == before.names


def test_a_copied_folder_is_looked_at_once_and_gives_the_same_images(folder, kept, looked_at):
    before = open_dataset(folder, verdict_path=kept, **OPTIONS)
    for path in folder.rglob("*.png"):
        os.utime(path)
    after = open_dataset(folder, verdict_path=kept, **OPTIONS)
    assert len(looked_at) == 6
    assert (after.names, after.identity, after.skipped) == (before.names, before.identity, before.skipped)
    np.testing.assert_array_equal(after.take(range(6)), before.take(range(6)))


def test_what_was_spoilt_is_named_replaced_and_looked_at_again_until_it_is_whole(folder, kept, looked_at):
    before, whole = open_dataset(folder, verdict_path=kept, **OPTIONS), (folder / "0/2.png").read_bytes()
    spoil(folder / "0/2.png")
    for _ in range(2):
        looked_at.clear()
        dataset = open_dataset(folder, verdict_path=kept, **OPTIONS)
        assert looked_at == ["2.png"]
        assert (dataset.names, dataset.identity) == (before.names, before.identity)
        assert [name for name, _ in dataset.skipped] == ["0/2.png"]
        np.testing.assert_array_equal(dataset.take([0, 1, 2]), before.take([0, 2, 2]))
        kept.write_bytes(dataset.kept()[".json"])
    (folder / "0/2.png").write_bytes(whole)
    dataset = open_dataset(folder, verdict_path=kept, **OPTIONS)
    assert dataset.skipped == ()
    np.testing.assert_array_equal(dataset.take(range(6)), before.take(range(6)))


def test_a_folder_of_which_most_was_spoilt_is_refused(folder, kept):
    before = kept.read_bytes()
    for number in range(4):
        spoil(folder / f"{number % 2}" / f"{number}.png")
    with pytest.raises(DataError, match="4 of 6 images could be used at first and can't be now"):
        open_dataset(folder, verdict_path=kept, **OPTIONS)
    assert kept.read_bytes() == before


def stack(path, pages, dtype=np.uint16):
    tifffile.imwrite(path, np.ones((pages, 8, 8), dtype), photometric="minisblack", metadata=None)
    path.write_bytes(path.read_bytes().ljust(4000, b"\0"))


@pytest.mark.parametrize(
    ("pages", "dtype", "said"),
    [(3, np.uint16, None), (2, np.uint16, "holds 2 images, at the first start"), (3, np.float32, "float32 numbers")],
)
def test_a_stack_that_holds_something_else_now_is_left_out(tmp_path, pages, dtype, said):
    folder, kept = tmp_path / "images", tmp_path / "images.json"
    folder.mkdir()
    for number in range(3):
        stack(folder / f"{number}.tif", 3)
    options = {"num_channels": 1, "verdict_path": kept, "any_range": True}
    first = open_dataset(folder, **options)
    stack(folder / "1.tif", pages, dtype)
    os.utime(folder / "1.tif", (0, 0))
    dataset = open_dataset(folder, **options)
    assert dataset.names == first.names
    assert [name for name, _ in dataset.skipped] == ([] if said is None else ["1.tif#1", "1.tif#2", "1.tif#3"])
    assert all(said in reason for _, reason in dataset.skipped)
    assert len(dataset.take(range(9))) == 9


def test_a_list_of_a_version_that_kept_no_times_is_used_as_it_is(folder, kept, looked_at):
    content = json.loads(kept.read_bytes())
    del content["times"]
    kept.write_text(json.dumps(content))
    os.utime(folder / "0/2.png")
    dataset = open_dataset(folder, verdict_path=kept, **OPTIONS)
    assert (looked_at, dataset.notes, dataset.kept()[".json"]) == ([], (), kept.read_bytes())


@pytest.mark.parametrize("times", [3, [], [1] * 5, [1.0] * 6, ["1"] * 6, [True] * 6, [2**63] * 6, {"0/0.png": 1}])
def test_damaged_times_are_a_damaged_list(folder, kept, times):
    kept.write_text(json.dumps(json.loads(kept.read_bytes()) | {"times": times}))
    with pytest.raises(DataError, match="can't be read: delete it, and it is made again"):
        open_dataset(folder, verdict_path=kept, **OPTIONS)


def test_opening_a_runs_data_writes_nothing_and_the_run_keeps_the_new_times(folder, kept, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    before = kept.read_bytes()
    os.utime(folder / "0/2.png")
    options = {"image_size": 14, "num_channels": 1, "fit": "cover", "layout": None, "workers": 1, "show": False}
    source = open_source(folder, Length(3, None, 2), known=kept, **options)
    assert (kept.read_bytes(), [path.name for path in kept.parent.iterdir()]) == (before, ["images.json"])
    fresh = open_source(folder, Length(3, None, 2), known=tmp_path / "new" / "images.json", **options)
    assert not (tmp_path / "new").exists()
    source.write_kept(kept)
    (tmp_path / "new").mkdir()
    fresh.write_kept(tmp_path / "new" / "images.json")
    assert kept.read_bytes() == (tmp_path / "new" / "images.json").read_bytes() != before
    written = kept.stat().st_mtime_ns
    source.write_kept(kept)
    assert kept.stat().st_mtime_ns == written  # the same isn't written again


def test_threads_change_nothing_in_a_listing(folder):
    (folder / "gone.png").symlink_to("nowhere")
    (folder / "folder.png").mkdir()
    one, four = (list_images(folder, workers=workers) for workers in (1, 4))
    assert (one.files.names, one.skipped, one.others) == (four.files.names, four.skipped, four.others)
    assert one.files.sizes.tolist() == four.files.sizes.tolist()
    assert one.files.times.tolist() == four.files.times.tolist()
    assert one.skipped == (("folder.png", "a folder with an image's name"), ("gone.png", "a link to nothing"))
    status = [(folder / name).stat() for name in one.files.names]
    assert one.files.sizes.tolist() == [each.st_size for each in status]
    assert one.files.times.tolist() == [each.st_mtime_ns for each in status]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 15, 16, 17, 1023, 1024, 1025, 2100])
def test_a_scan_calls_each_once_and_tells_of_each(count, workers):
    called, told = [], []
    reasons = scan(called.append, count, workers=workers, progress=lambda done, total: told.append((done, total)))
    assert (sorted(called), reasons) == (list(range(count)), {})
    assert told == [(done + 1, count) for done in range(count)]
