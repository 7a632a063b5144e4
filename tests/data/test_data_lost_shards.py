"""Shards that can't be read: a hiccup costs nothing, and more than half of them lost ends the run."""

import contextlib

import pyarrow
import pytest

from byol_jax import DataError
from byol_jax.data import open_dataset
from byol_jax.data.files.kept_list import KeptList
from byol_jax.data.shards import find, parquet, records, tar
from byol_jax.data.shards.find import Shard, Shards, check_lost
from byol_jax.data.unusable import UnusableImageError
from tests.shard_files import (
    example,
    parts,
    pictures,
    write_array_records,
    write_parquets,
    write_tars,
    write_tfrecords,
)

OPTIONS = {"image_size": 14, "num_channels": 3}


def write(root, kind, number):
    found = pictures(2 * number)
    if kind == "tar":
        return write_tars(root, found, number)
    if kind == "parquet":
        return write_parquets(root, found, number)
    to = write_tfrecords if kind == "tfrecord" else write_array_records
    for index, part in enumerate(parts(found, number)):
        to(root / f"{index}.{kind}", [example({"image": one.data, "label": one.label}) for one in part])
    return root


@pytest.mark.parametrize("kind", ["tar", "parquet", "tfrecord", "array_record"])
def test_more_than_half_of_the_shards_lost_end_the_run(tmp_path, kind):
    root = write(tmp_path / "shards", kind, 5)
    for path in sorted(root.iterdir())[:2]:
        path.write_bytes(b"noise" * 300)
    assert len(open_dataset(root, **OPTIONS)) == 6
    sorted(root.iterdir())[2].write_bytes(b"noise" * 300)
    with pytest.raises(DataError, match=r"3 of 5 shards can't be read \('.*': .*; .*; .*\): repair them, or"):
        open_dataset(root, **OPTIONS)


def test_more_than_half_of_the_bytes_lost_end_the_run_too(tmp_path):
    shards = Shards("tar", "photos", tuple(Shard(f"{part}.tar", "", 10) for part in range(3)))
    check_lost(shards, {"0.tar": (10, "damaged"), "1.tar": (5, "damaged")})
    with pytest.raises(DataError, match=r"photos: 16 of 30 bytes of 3 shards can't be read \('0.tar': damaged; '1"):
        check_lost(shards, {"0.tar": (10, "damaged"), "1.tar": (6, "damaged")})
    path = write_tfrecords(tmp_path / "a.tfrecord", [one.data for one in pictures(10)])
    content = bytearray(path.read_bytes())
    content[3 * (16 + len(pictures(1)[0].data))] ^= 1  # the fourth record's length
    path.write_bytes(content)
    with pytest.raises(DataError, match="bytes of 1 shards can't be read"):
        open_dataset(path, **OPTIONS)


def usable(root, monkeypatch, error, times):
    """The numbers of the rows whose bytes can be had one after the other, while so many reads of row groups fail."""
    found, encoded = pictures(12), parquet.parquet_images(find.find_shards(root))
    fails, column = iter([error] * times), parquet._Rows._column

    def fail(rows, group):
        for one in fails:
            raise one
        return column(rows, group)

    monkeypatch.setattr(parquet._Rows, "_column", fail)
    numbers = []
    for number, name in enumerate(encoded.listing.files.names):
        with contextlib.suppress(UnusableImageError):
            assert (encoded.root / name).open().read() == found[number].data
            numbers.append(number)
    return numbers


DISKS = (OSError(5, "Input/output error"), TimeoutError("the network"))
DAMAGES = (OSError("CRC checksum verification failed"), pyarrow.ArrowInvalid("corrupt"))


@pytest.mark.parametrize(
    ("error", "times", "lost"),
    [(error, 1, 0) for error in (*DISKS, *DAMAGES)]
    + [(error, 2, 1) for error in DISKS]
    + [(error, 2, 3) for error in DAMAGES],
)
def test_what_a_disk_fails_at_is_asked_for_again_and_damage_is_not(tmp_path, monkeypatch, error, times, lost):
    root = write_parquets(tmp_path / "shards", pictures(12), rows=3)
    assert usable(root, monkeypatch, error, times) == list(range(lost, 12))


@pytest.mark.parametrize("kind", ["tar", "tfrecord"])
def test_labels_that_cannot_be_read_are_said_in_one_line(tmp_path, monkeypatch, kind):
    root = write(tmp_path / "shards", kind, 2)
    module = tar if kind == "tar" else records

    def fail(*_):
        raise OSError(5, "Input/output error")

    encoded = (tar.tar_images if kind == "tar" else records.record_images)(find.find_shards(root))
    monkeypatch.setattr(module, "open_slice", fail)
    with pytest.raises(DataError, match=r"can't be read \(.*Input/output error"):
        encoded.read_labels(KeptList(encoded.listing.files, ()))
