"""Parquet files as a dataset: the images and labels that Hugging Face datasets wrote, in pools of row groups."""

import json
import subprocess
import sys

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byol_jax import DataError
from byol_jax.data import Loader, block_order, epoch_order, open_dataset
from byol_jax.data.shards import parquet as parquet_module
from tests.shard_files import pictures, write_folder, write_parquet, write_parquets

OPTIONS = {"image_size": 14, "num_channels": 3}
NAMES = ["ant", "bee", "cat"]


def table(found):
    images = [{"bytes": one.data, "path": None} for one in found]
    return pyarrow.table({"image": images, "label": [one.label for one in found]})


@pytest.fixture
def found():
    return pictures(14)


@pytest.fixture
def root(tmp_path, found):
    return write_parquets(tmp_path / "shards", found)


@pytest.mark.parametrize("plain", [False, True])
def test_the_images_are_those_of_a_folder_bit_for_bit(tmp_path, found, plain):
    root = write_parquets(tmp_path / "shards", found, plain=plain)
    dataset = open_dataset(root, **OPTIONS)
    expected = open_dataset(write_folder(tmp_path / "folder", found), **OPTIONS).take(range(14))
    np.testing.assert_array_equal(dataset.take(range(14)), expected)
    assert dataset.names[6:8] == ("train-00000-of-00002.parquet#000000006", "train-00001-of-00002.parquet#000000000")
    for cache_bytes, scan_limit, workers in ((0, 0, 3), (10**6, 0, 1)):
        again = open_dataset(root, cache_bytes=cache_bytes, scan_limit=scan_limit, workers=workers, **OPTIONS)
        np.testing.assert_array_equal(again.take([13, 0, 7, 6]), expected[[13, 0, 7, 6]])
    for source in (root / "train-*.parquet", root / "train-{00000..00001}-of-00002.parquet"):
        assert open_dataset(source, **OPTIONS).identity == dataset.identity


@pytest.mark.slow
def test_images_and_labels_are_those_that_hugging_face_datasets_wrote(tmp_path, found):
    import datasets

    features = datasets.Features({"picture": datasets.Image(), "kind": datasets.ClassLabel(names=NAMES)})
    images = [{"bytes": one.data, "path": None} for one in found]
    theirs = datasets.Dataset.from_dict({"picture": images, "kind": [one.label for one in found]}, features=features)
    theirs.to_parquet(tmp_path / "train.parquet")
    dataset = open_dataset(tmp_path / "train.parquet", with_labels=True, num_channels=3)
    np.testing.assert_array_equal(dataset.take(range(14)), np.stack([np.asarray(row["picture"]) for row in theirs]))
    assert (dataset.labels.tolist(), dataset.class_names) == (theirs["kind"][:], tuple(NAMES))
    map_style = open_dataset(theirs.rename_columns({"picture": "image", "kind": "label"}), with_labels=True)
    np.testing.assert_array_equal(map_style.take(range(14)), dataset.take(range(14)))
    assert (map_style.labels.tolist(), map_style.class_names) == (dataset.labels.tolist(), tuple(NAMES))


def test_labels_are_a_column_of_whole_numbers(root, found, tmp_path):
    dataset = open_dataset(root, with_labels=True, **OPTIONS)
    assert dataset.labels.tolist() == [one.label for one in found]
    assert (dataset.labels.dtype, dataset.class_names) == (np.int32, None)
    path = tmp_path / "unlabelled.parquet"
    pyarrow.parquet.write_table(table(found).drop_columns("label"), path)
    with pytest.raises(DataError, match=r"labels come from one column .* and there is none"):
        open_dataset(path, with_labels=True, **OPTIONS)
    assert open_dataset(path, with_labels=None, **OPTIONS).notes[0].startswith("no labels: ")
    pyarrow.parquet.write_table(table(found).set_column(1, "label", [[None, *range(13)]]), path)
    with pytest.raises(
        DataError, match=r"the label of 'unlabelled.parquet#000000000' is None: expected a whole number"
    ):
        open_dataset(path, with_labels=True, **OPTIONS)


def test_which_column_is_meant_is_refused_where_it_is_in_doubt(tmp_path, found):
    path, images = tmp_path / "a.parquet", [one.data for one in found]
    pyarrow.parquet.write_table(pyarrow.table({"left": images, "right": images, "n": [0] * 14}), path)
    with pytest.raises(DataError, match=r"2 columns may be the images, of left \(binary\), right .*: expected one of"):
        open_dataset(path, **OPTIONS)
    pyarrow.parquet.write_table(pyarrow.table({"left": images, "image": images}), path)
    assert len(open_dataset(path, **OPTIONS)) == 14
    pyarrow.parquet.write_table(pyarrow.table({"n": [0] * 14}), path)
    with pytest.raises(DataError, match=r"no columns may be the images, of n \(int64\)"):
        open_dataset(path, **OPTIONS)
    pyarrow.parquet.write_table(pyarrow.table({"left": images}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"no columns|other columns"):
        open_dataset(tmp_path, **OPTIONS)


def test_what_is_no_image_is_named_and_counted(tmp_path, found):
    images = [{"bytes": one.data, "path": None} for one in found]
    images[3] = {"bytes": b"no picture", "path": None}
    images[5] = {"bytes": None, "path": "elsewhere.png"}
    images[7] = None
    pyarrow.parquet.write_table(pyarrow.table({"image": images}), tmp_path / "a.parquet", row_group_size=4)
    dataset = open_dataset(tmp_path / "a.parquet", **OPTIONS)
    assert dict(dataset.skipped) == {
        "a.parquet#000000003": "not an image, or damaged at its start",
        "a.parquet#000000005": "no image: the bytes of this row are null",
        "a.parquet#000000007": "no image: the bytes of this row are null",
    }
    assert len(dataset) == 11


def test_a_damaged_row_group_and_a_damaged_file_lose_no_other_one(tmp_path, found):
    root = write_parquets(tmp_path / "shards", found, number=3, rows=2)
    path = root / "train-00001-of-00003.parquet"
    content = bytearray(path.read_bytes())
    at = content.index(found[7].data[100:140])
    content[at - 4 : at + 3000] = bytes(3004)
    path.write_bytes(content)
    (root / "train-00002-of-00003.parquet").write_bytes(b"PAR1 and nothing else PAR1")
    dataset = open_dataset(root, **OPTIONS)
    names = [name for name, _ in dataset.skipped]
    assert "train-00002-of-00003.parquet#0" in names
    assert set(names) >= {f"train-00001-of-00003.parquet#{row:09}" for row in (2,)}
    assert set(dataset.names) >= {f"train-00000-of-00003.parquet#{row:09}" for row in range(5)}
    expected = open_dataset(write_folder(tmp_path / "folder", found[:5]), **OPTIONS).take(range(5))
    np.testing.assert_array_equal(dataset.take(range(5)), expected)


def test_several_splits_in_a_folder_are_not_mixed(root, found):
    pyarrow.parquet.write_table(table(found), root / "test-00000-of-00001.parquet")
    with pytest.raises(DataError, match=r"several splits: give one of them: '.*test-\*.parquet', '.*train-\*.parquet'"):
        open_dataset(root, **OPTIONS)
    assert len(open_dataset(root / "test-*.parquet", **OPTIONS)) == 14


def test_row_groups_that_are_too_large_are_refused_by_name(root, monkeypatch):
    monkeypatch.setattr(parquet_module, "LARGEST_GROUP", 1000)
    with pytest.raises(DataError, match=r"train-0000\d-of-00002.parquet: row group 0 has 0.0 GiB of images in 3 rows"):
        open_dataset(root, **OPTIONS)


def test_small_data_is_shuffled_as_a_whole_and_large_data_in_pools(root, monkeypatch):
    small = open_dataset(root, **OPTIONS)
    assert small.order(3, 1, 14).tolist() == epoch_order(3, 1, 14).tolist()
    monkeypatch.setattr(parquet_module, "POOL_BYTES", 6000)
    large = open_dataset(root, **OPTIONS)
    blocks = np.array([3, 3, 1, 3, 3, 1])
    pool = parquet_module.POOL_BYTES * 14 // sum(one.size for one in parquet_groups(root))
    expected = block_order(3, 1, 14, blocks=blocks, pool=pool)
    assert large.order(3, 1, 14).tolist() == expected.tolist() != epoch_order(3, 1, 14).tolist()
    with Loader(large, batch_size=4, seed=3, start_step=4, place=lambda batch: batch) as loader:
        np.testing.assert_array_equal(next(loader), large.take(large.order(3, 1, 14)[4:8]))


def test_an_epochs_order_is_that_of_the_first_start_whatever_comes_or_goes(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_module, "POOL_BYTES", 20_000)
    root, kept = write_parquets(tmp_path / "shards", pictures(40)), tmp_path / "images.json"
    first = open_dataset(root, verdict_path=kept, **OPTIONS)
    assert first.order(0, 0, 40).tolist() != epoch_order(0, 0, 40).tolist()
    more = [one._replace(data=one.data + bytes(3000)) for one in pictures(30)]
    write_parquet(root / "train-00009-of-00002.parquet", more, rows=7)
    later = [open_dataset(root, verdict_path=kept, **OPTIONS)]
    (root / "train-00001-of-00002.parquet").unlink()
    later.append(open_dataset(root, verdict_path=kept, scan_limit=0, **OPTIONS))
    for dataset in later:
        assert (dataset.identity, len(dataset)) == (first.identity, 40)
        assert dataset.order(0, 0, 40).tolist() == first.order(0, 0, 40).tolist()
    content = json.loads(kept.read_text())
    content["blocks"]["images"][0] += 1
    kept.write_text(json.dumps(content))
    with pytest.raises(DataError, match="this list of usable images can't be read"):
        open_dataset(root, verdict_path=kept, **OPTIONS)


def parquet_groups(root):
    for number, path in enumerate(sorted(root.glob("*.parquet"))):
        with pyarrow.parquet.ParquetFile(path) as file:
            shard = parquet_module.Shard(path.name, str(path), 0)
            sizes = parquet_module.column_sizes(file.metadata)
            yield from parquet_module._groups(number, parquet_module._Table(shard, file.metadata, None, sizes), "image")


BLOCKS = st.lists(st.integers(1, 9), min_size=1, max_size=12).map(np.array)


@given(st.integers(0, 99), st.integers(0, 99), BLOCKS, st.integers(1, 30))
def test_an_order_by_blocks_goes_through_each_pool_before_the_next(seed, epoch, blocks, pool):
    count = int(blocks.sum())
    order = block_order(seed, epoch, count, blocks=blocks, pool=pool)
    assert sorted(order.tolist()) == list(range(count))
    if count <= pool:
        assert order.tolist() == epoch_order(seed, epoch, count).tolist()
        return
    block_of = np.repeat(np.arange(len(blocks)), blocks)[order]
    first, last = ({block: seen(block_of, block) for block in range(len(blocks))} for seen in (_first, _last))
    for start in range(count):
        open_now = [block for block in first if first[block] <= start <= last[block]]
        assert sum(blocks[open_now]) < 2 * (pool + blocks.max())


def _first(block_of, block):
    return int(np.flatnonzero(block_of == block)[0])


def _last(block_of, block):
    return int(np.flatnonzero(block_of == block)[-1])


def test_a_row_group_is_read_once_in_a_pool(root, monkeypatch):
    monkeypatch.setattr(parquet_module, "POOL_BYTES", 9000)
    dataset = open_dataset(root, scan_limit=0, cache_bytes=0, **OPTIONS)
    read, load = [], parquet_module._Rows._load
    monkeypatch.setattr(parquet_module._Rows, "_load", lambda rows, group: read.append(group) or load(rows, group))
    for start in range(0, 14, 2):
        dataset.take(dataset.order(0, 0, 14)[start : start + 2], workers=1)
    assert len(read) <= len(set(read)) + 2


def test_without_pyarrow_one_line_names_the_extra(root):
    program = (
        "import sys; sys.modules['pyarrow'] = sys.modules['pyarrow.parquet'] = None\n"
        "from byol_jax.data import open_dataset\n"
        f"try: open_dataset({str(root)!r}, image_size=14)\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        'Parquet files are read by pyarrow, which is absent: pip install "byol-jax[parquet]"'
    )


@pytest.mark.slow
def test_an_end_that_pyarrow_cannot_bear_is_a_reason(tmp_path, found):
    """pyarrow 26 ends its process where some lists in a file's end have another length, as in two of these ten."""
    path = write_parquet(tmp_path / "a.parquet", found)
    whole, outcomes = path.read_bytes(), []
    start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for place in [place for place in range(start, len(whole) - 8) if whole[place] == 0x19][20:30]:
        path.write_bytes(whole[:place] + b"\x09" + whole[place + 1 :])
        try:
            outcomes.append(str(open_dataset(path, **OPTIONS).skipped))
        except DataError as error:
            outcomes.append(str(error))
        assert outcomes[-1].isprintable()
    assert any("no Parquet file that can be read" in outcome for outcome in outcomes)
    path.write_bytes(whole)
    assert len(open_dataset(path, **OPTIONS)) == 14


def test_a_row_group_of_fewer_rows_than_are_described_is_named(root, monkeypatch):
    """Which rows they are can't be known. The fuzzed shards of `make long` have such files."""
    whole = pyarrow.parquet.ParquetFile.read_row_group

    def shorter(file, number, **options):
        return whole(file, number, **options)[number == 1 :]

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", shorter)
    skipped = dict(open_dataset(root, **OPTIONS).skipped)
    assert sorted(skipped)[0].endswith("#000000003")
    assert all("2 rows where the file's description says 3" in reason for reason in skipped.values())
