"""TFRecord and ArrayRecord as a dataset: the records that grain reads, at any place, and none that is damaged."""

import struct
import subprocess
import sys

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader
from grain.experimental import TFRecordIterDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from byol_jax import DataError
from byol_jax.data import open_dataset
from byol_jax.data.shards.find import Shard
from byol_jax.data.shards.records import _ArrayRecords, _image, _TFRecords
from tests.shard_files import example, parts, pictures, write_array_records, write_folder, write_tfrecords

OPTIONS = {"image_size": 14, "num_channels": 3}
WRITERS = {"tfrecord": write_tfrecords, "array_record": write_array_records}


@pytest.fixture
def found():
    return pictures(12)


def as_examples(found):
    return [
        example({"file_name": b"x", "image": one.data, "label": one.label, "weight": 0.5, "size": -1}) for one in found
    ]


def write(root, kind, found, number=2):
    for index, part in enumerate(parts(found, number)):
        WRITERS[kind](root / f"photos-train.{kind}-{index:05}-of-{number:05}", as_examples(part))
    return root


@pytest.mark.parametrize("kind", WRITERS)
def test_the_images_are_those_of_a_folder_bit_for_bit(tmp_path, found, kind):
    root = write(tmp_path / "shards", kind, found)
    dataset = open_dataset(root, **OPTIONS)
    expected = open_dataset(write_folder(tmp_path / "folder", found), **OPTIONS).take(range(12))
    np.testing.assert_array_equal(dataset.take(range(12)), expected)
    assert dataset.names[5:7] == (
        f"photos-train.{kind}-00000-of-00002#000000005",
        f"photos-train.{kind}-00001-of-00002#000000000",
    )
    assert dataset.identity["kind"] == kind
    pattern = root / f"photos-train.{kind}-{{00000..00001}}-of-00002"
    again = open_dataset(pattern, scan_limit=0, cache_bytes=0, workers=3, with_labels=True, **OPTIONS)
    np.testing.assert_array_equal(again.take([11, 0, 7]), expected[[11, 0, 7]])
    assert (again.identity, again.labels.tolist()) == (dataset.identity, [one.label for one in found])
    plain = WRITERS[kind](tmp_path / f"plain.{kind}", [one.data for one in found])  # images and nothing around them
    np.testing.assert_array_equal(open_dataset(plain, **OPTIONS).take(range(12)), expected)
    with pytest.raises(DataError, match=r"labels are whole numbers .* has none"):
        open_dataset(plain, with_labels=True, **OPTIONS)


@settings(max_examples=20)
@given(st.lists(st.binary(max_size=300), max_size=8))
def test_records_are_those_that_grain_reads(tmp_path_factory, records):
    path = write_tfrecords(tmp_path_factory.mktemp("records") / "a.tfrecord", records)
    file = _TFRecords(Shard(path.name, str(path), path.stat().st_size))
    assert [file.read(number) for number in range(len(file.sizes))] == list(TFRecordIterDataset(str(path))) == records
    assert file.damage is None


def test_damaged_data_loses_its_record_and_a_damaged_length_what_is_behind(tmp_path, found):
    path = write_tfrecords(tmp_path / "a.tfrecord", [one.data for one in found])
    whole = path.read_bytes()
    second, last = 16 + len(found[0].data), len(whole) - 16 - len(found[-1].data)
    for at, lost, reason in (
        (second + 12 + 700, {1}, "damaged: its check sum is another one"),
        (second + 12 + len(found[1].data), {1}, "damaged: its check sum is another one"),
        (last, {11}, f"damaged at byte {last}: the records from there on are lost"),
    ):
        content = bytearray(whole)
        content[at] ^= 1
        path.write_bytes(content)
        dataset = open_dataset(path, **OPTIONS)
        assert {int(name.partition("#")[2]) for name, _ in dataset.skipped} == lost
        assert dataset.skipped[0][1].startswith(reason)
        assert len(dataset) == 12 - len(lost)
    path.write_bytes(whole[:-3])
    assert open_dataset(path, **OPTIONS).skipped[0][1].startswith("cut short at byte")
    path.write_bytes(b"no records" * 10)
    with pytest.raises(DataError, match=r"no record can be had of 1 tfrecord files \('a.tfrecord#0': damaged at"):
        open_dataset(path, **OPTIONS)
    path.write_bytes(struct.pack("<Q", 2**63) + bytes(8))
    with pytest.raises(DataError, match="no record can be had"):
        open_dataset(path, **OPTIONS)


def test_a_file_that_cannot_be_opened_is_named(tmp_path):
    file = _TFRecords(Shard("a.tfrecord", str(tmp_path), 4096))
    assert (file.sizes, file.lost) == ([], 4096)
    assert "can't be read ([Errno 21] Is a directory" in str(file.damage)


def test_no_array_record_is_refused_and_a_damaged_one_named(tmp_path, found):
    path = write_array_records(tmp_path / "a.array_record", [one.data for one in found])
    whole = path.read_bytes()
    at = whole.index(found[3].data[200:240])
    path.write_bytes(whole[:at] + bytes(40) + whole[at + 40 :])
    dataset = open_dataset(path, **OPTIONS)
    assert [name for name, _ in dataset.skipped] == ["a.array_record#000000003"]
    path.write_bytes(b"no records" * 10)
    with pytest.raises(DataError, match=r"no record can be had of 1 array_record files \('a.array_record#0': no Array"):
        open_dataset(path, **OPTIONS)


def test_an_examples_image_is_the_entry_that_begins_as_one(found):
    one, two = found[0].data, found[1].data
    assert _image(example({"image_raw": b"\0" * 50, "picture": one})) == one
    assert _image(example({"image": two, "image/encoded": one})) == one
    assert _image(example({"depth": two, "image": one})) == one
    for record, reason in {
        example({"image_raw": b"\0" * 50, "label": 1}): "no entries begin as an image does, .*: image_raw, label",
        example({"left": one, "right": two}): "2 entries begin as an image does, of those in its Example: left, right",
        b"\xff no message": "neither an image nor a tf.train.Example",
        b"": "no entries begin as an image does, of those in its Example: none",
    }.items():
        with pytest.raises(Exception, match=reason):
            _image(record)


@settings(max_examples=20)
@given(st.lists(st.binary(max_size=300), min_size=1, max_size=8), st.sampled_from([1, 3]))
def test_array_records_are_those_that_its_own_reader_reads(tmp_path_factory, records, group_size):
    path = write_array_records(tmp_path_factory.mktemp("records") / "a.array_record", records, group_size=group_size)
    file = _ArrayRecords(Shard(path.name, str(path), path.stat().st_size))
    reader = ArrayRecordReader(str(path))
    theirs = reader.read_all()
    reader.close()
    assert [file.read(number) for number in range(len(file.sizes))] == theirs == records


@pytest.mark.parametrize(
    ("absent", "kind"),
    [
        ("grain", "tfrecord"),
        ("grain", "array_record"),
        pytest.param("google_crc32c", "tfrecord", marks=pytest.mark.slow),
    ],
)
def test_without_grain_or_its_companion_one_line_names_the_extra(tmp_path, found, absent, kind):
    root = write(tmp_path / "shards", kind, found)
    program = (
        f"import sys; sys.modules['{absent}'] = None\n"
        "from byol_jax.data import open_dataset\n"
        f"try: open_dataset({str(root)!r}, image_size=14)\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        'TFRecord and ArrayRecord need grain and google-crc32c, which are absent: pip install "byol-jax[grain]"'
    )
