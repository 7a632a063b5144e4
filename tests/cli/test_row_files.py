"""Rows written as they come: the same in every format, read by others' readers, complete or not there, memory flat."""

import csv
import os
import subprocess
import sys

import numpy as np
import pytest

from byol_jax.cli.row_files import About, check_format, open_rows
from byol_jax.errors import DataError, MissingDependencyError

COUNT = 10
NAMES = [f"a/{number}.png" for number in range(COUNT)]
NAMES[3], NAMES[4] = 'with "quotes", and\na new line.png', "not \udcff unicode.png"
LABELS = (np.arange(COUNT) % 3).astype(np.int32)
KEPT = np.array([0, 1, 2, 3, 4, 6, 7, 9])
"""Rows 5 and 8 are left out."""
FORMATS = (".npz", ".npy", ".parquet", ".csv")


def rows_of(shape=(5,)):
    rows = np.random.default_rng(0).standard_normal((COUNT, *shape)).astype(np.float32)
    rows.flat[:3] = np.float32(0.1), np.nan, np.inf
    return rows


def written(path, about, rows, numbers=KEPT, batch=3):
    with open_rows(path, about) as write:
        for start in range(0, len(numbers), batch):
            part = numbers[start : start + batch]
            write(rows[part], part)
    return path


WHOLE = About(NAMES, LABELS, ("cat", "dog", "elk"))


def unicode_names(numbers=KEPT):
    return [NAMES[row].replace("\udcff", r"\udcff") for row in numbers]


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), (0,)])
def test_npy_and_npz_are_numpys(tmp_path, shape):
    rows = rows_of(shape) if 0 not in shape else np.zeros((COUNT, *shape), np.float32)
    found = np.load(written(tmp_path / "x.npy", WHOLE, rows), allow_pickle=False)
    np.testing.assert_array_equal(found, rows[KEPT])
    lines = (tmp_path / "x.npy.names.txt").read_text().splitlines()
    assert lines == [name.replace("\n", r"\n") for name in unicode_names()]
    with np.load(written(tmp_path / "x.npz", WHOLE, rows), allow_pickle=False) as archive:
        assert list(archive) == ["embeddings", "names", "labels", "class_names"]
        np.testing.assert_array_equal(archive["embeddings"], rows[KEPT])
        assert archive["names"].tolist() == [NAMES[row] for row in KEPT]
        assert archive["labels"].tolist() == LABELS[KEPT].tolist()
        assert archive["class_names"].tolist() == ["cat", "dog", "elk"]
    assert (tmp_path / "x.npy.labels.txt").read_text().splitlines() == [WHOLE.class_names[LABELS[row]] for row in KEPT]
    beside = ["x.npy", "x.npy.labels.txt", "x.npy.names.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*beside, "x.npz"]


def test_the_header_is_the_one_that_numpy_writes(tmp_path):
    """Also where the number of rows has more digits than at first."""
    rows = np.zeros((1234, 3), np.float32)
    np.save(tmp_path / "theirs.npy", rows)
    ours = written(tmp_path / "ours.npy", About(None, None, None), rows, np.arange(1234), batch=100)
    assert ours.read_bytes() == (tmp_path / "theirs.npy").read_bytes()
    assert not (tmp_path / "ours.npy.names.txt").exists()


def test_csv_is_read_by_pythons_own_reader(tmp_path):
    rows = rows_of()
    with open(written(tmp_path / "x.csv", WHOLE, rows), newline="", encoding="utf-8") as file:
        header, *lines = csv.reader(file)
    assert header == ["name", "label", "class", "0", "1", "2", "3", "4"]
    assert [line[0] for line in lines] == unicode_names()
    assert [line[1] for line in lines] == [str(label) for label in LABELS[KEPT]]
    assert [line[2] for line in lines] == [("cat", "dog", "elk")[label] for label in LABELS[KEPT]]
    numbers = np.array([[np.float32(word) for word in line[3:]] for line in lines])
    np.testing.assert_array_equal(numbers, rows[KEPT])  # the same bits: nothing is rounded
    assert lines[0][3:6] == ["0.1", "nan", "inf"]


def test_parquet_is_arrows(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    rows = rows_of()
    table = parquet.read_table(written(tmp_path / "x.parquet", WHOLE, rows))
    assert table.column_names == ["name", "label", "class", "embedding"]
    assert table["name"].to_pylist() == unicode_names()
    assert table["label"].to_pylist() == LABELS[KEPT].tolist()
    assert table["class"].to_pylist() == [("cat", "dog", "elk")[label] for label in LABELS[KEPT]]
    assert str(table.schema.field("embedding").type).startswith("fixed_size_list<")
    found = np.stack([np.asarray(row, np.float32) for row in table["embedding"].to_pylist()])
    np.testing.assert_array_equal(found, rows[KEPT])
    maps = rows_of((2, 3, 4))
    table = parquet.read_table(written(tmp_path / "maps.parquet", About(None, None, None), maps))
    assert table.column_names == ["embedding"]
    np.testing.assert_array_equal(table["embedding"].combine_chunks().to_numpy_ndarray(), maps[KEPT])


def test_parquets_row_groups_are_no_smaller_than_asked(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    monkeypatch.setattr("byol_jax.cli.row_files.GROUP_BYTES", 4 * 5 * 4)
    rows = rows_of()
    path = written(tmp_path / "x.parquet", About(None, None, None), rows, np.arange(COUNT), batch=2)
    groups = parquet.ParquetFile(path).metadata
    assert [groups.row_group(group).num_rows for group in range(groups.num_row_groups)] == [4, 4, 2]
    np.testing.assert_array_equal(np.stack(parquet.read_table(path)["embedding"].to_pylist()).astype(np.float32), rows)


@pytest.mark.parametrize("labels", [None, LABELS])
@pytest.mark.parametrize("ending", FORMATS)
def test_what_is_not_known_is_left_out(tmp_path, ending, labels):
    path = written(tmp_path / f"x{ending}", About(None, labels, None), rows_of())
    if ending == ".npz":
        with np.load(path) as archive:
            assert list(archive) == ["embeddings", *([] if labels is None else ["labels"])]
    elif ending == ".csv":
        header = path.read_text().splitlines()[0]
        assert header == ("0,1,2,3,4" if labels is None else "label,0,1,2,3,4")
    elif ending == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
        assert parquet.read_schema(path).names == [*([] if labels is None else ["label"]), "embedding"]
    else:
        assert np.load(path).shape == (len(KEPT), 5)


def fail_after_some_rows(path, error):
    with open_rows(path, WHOLE) as write:
        write(rows_of()[:4], np.arange(4))
        raise error


@pytest.mark.parametrize("ending", FORMATS)
def test_an_interrupted_run_leaves_what_was_there(tmp_path, ending):
    if ending == ".parquet":
        pytest.importorskip("pyarrow", reason="needs pyarrow")
    path = tmp_path / f"x{ending}"
    for old in (None, b"an old file"):
        if old is not None:
            path.write_bytes(old)
        for error in (KeyboardInterrupt, OSError("of somebody else")):
            with pytest.raises((KeyboardInterrupt, OSError)):
                fail_after_some_rows(path, error)
        assert [one.name for one in tmp_path.iterdir()] == ([] if old is None else [path.name])
        assert old is None or path.read_bytes() == old


def test_rows_and_their_names_never_part(tmp_path, monkeypatch):
    path = written(tmp_path / "x.npy", WHOLE, rows_of())
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    replace, failures = os.replace, [OSError(5, "Input/output error")]

    def fail_once(source, target):
        if os.path.basename(target) == "x.npy" and ".tmp-" in os.fspath(source) and failures:
            raise failures.pop()
        replace(source, target)

    monkeypatch.setattr("os.replace", fail_once)
    with pytest.raises(OSError, match="Input/output"):
        written(path, WHOLE, rows_of() + 1, KEPT[:2])
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    written(path, About(None, None, None), rows_of())
    assert [file.name for file in tmp_path.iterdir()] == ["x.npy"]


def test_a_link_is_written_through_where_its_names_lie_beside_the_file(tmp_path):
    (tmp_path / "x.npy").symlink_to("real.npy")
    rows = rows_of()
    written(tmp_path / "x.npy", WHOLE, rows)
    assert (tmp_path / "x.npy").is_symlink()
    np.testing.assert_array_equal(np.load(tmp_path / "real.npy"), rows[KEPT])
    assert len((tmp_path / "x.npy.names.txt").read_text().splitlines()) == len(KEPT)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "y.npy").symlink_to("elsewhere/y.npy")
    with pytest.raises(DataError, match=r"a link to .*elsewhere/y.npy, and the names lie beside it"):
        written(tmp_path / "y.npy", WHOLE, rows)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("ending", FORMATS)
def test_wrong_rows_are_refused(tmp_path, ending):
    if ending == ".parquet":
        pytest.importorskip("pyarrow", reason="needs pyarrow")
    with pytest.raises(DataError, match="no images"), open_rows(tmp_path / f"x{ending}", WHOLE):
        pass
    with open_rows(tmp_path / f"y{ending}", WHOLE) as write:
        write(rows_of(), np.arange(COUNT))
        with pytest.raises(DataError, match="expected one shape"):
            write(rows_of((6,)), np.arange(COUNT))
    assert {path.name for path in tmp_path.iterdir()} <= {f"y{ending}", "y.npy.names.txt", "y.npy.labels.txt"}


def test_an_error_of_the_disk_names_the_file(tmp_path):
    for error, named in (
        (OSError(28, "No space left on device"), "x.npy"),
        (OSError(28, "No space left on device", str(tmp_path / "an image.png")), "an image.png"),
    ):
        with pytest.raises(OSError, match="No space left") as caught:
            fail_after_some_rows(tmp_path / "x.npy", error)
        assert caught.value.filename == str(tmp_path / named)


def test_parquet_without_its_library(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r'x.parquet: .* pip install "byol-jax\[parquet\]"'):
        check_format(tmp_path / "x.parquet")
    for ending in (".npz", ".npy", ".csv"):
        check_format(tmp_path / f"x{ending}")


CHILD = """
import sys
from pathlib import Path
import numpy as np
from byol_jax.cli.row_files import About, open_rows
from byol_jax.evaluate import extract_batches

class Images:  # made when asked for
    def __init__(self, count):
        self.count = count
    def __len__(self):
        return self.count
    def __getitem__(self, rows):
        return np.arange(*rows.indices(self.count), dtype=np.float32)[:, None] * np.ones((1, 64), np.float32)

def highest():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("VmHWM"))

class Names:
    def __getitem__(self, row):
        return ("x" * 200 if row == 7 else f"folder/{row:030d}") + ".png"

about = About(Names(), (np.arange(400_000) % 2).astype(np.int32), ("cat", "dog"))

def write_all(count):
    start = 0
    with open_rows(Path(sys.argv[1]), about) as write:
        for rows in extract_batches(lambda batch: batch, Images(count), batch_size=1000):
            write(rows, np.arange(start, start + len(rows)))
            start += len(rows)

write_all(20_000)  # with what it imports, and the largest row group of Parquet
before = highest()
write_all(int(sys.argv[2]))
print(highest() - before)
"""


LARGE = {".npy": 200_000, ".parquet": 400_000, ".npz": 200_000, ".csv": 40_000}
MARKS = {ending: pytest.mark.slow if ending in (".npz", ".parquet") else pytest.mark.long for ending in LARGE}


@pytest.mark.parametrize(("ending", "count"), [pytest.param(*pair, marks=MARKS[pair[0]]) for pair in LARGE.items()])
def test_memory_does_not_grow_with_the_rows(tmp_path, ending, count):
    """51 MB of embeddings (of .parquet 102 MB, its row groups being 32; 10 MB of .csv, which takes longest)."""
    if ending == ".parquet":
        pytest.importorskip("pyarrow", reason="needs pyarrow")
    command = [sys.executable, "-c", CHILD, str(tmp_path / f"x{ending}"), str(count)]
    grown = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    size = 64 * 4 * count
    assert grown < (0.75 if ending == ".parquet" else 0.25) * size
    if ending == ".npy":
        found = np.load(tmp_path / "x.npy", mmap_mode="r")
        assert (found.shape, found[123_456, 7]) == ((count, 64), 123_456)
    if ending == ".npz":
        with np.load(tmp_path / "x.npz") as archive:
            assert archive["names"][[7, 123_456]].tolist() == ["x" * 200 + ".png", f"folder/{123_456:030d}.png"]
