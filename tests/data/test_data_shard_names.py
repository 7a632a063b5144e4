"""Which shards a folder or a pattern means, and what they are called: splits aren't mixed, nothing is left out."""

import os
import re

import fsspec
import numpy as np
import pytest

from byol_jax import DataError
from byol_jax.data import open_dataset
from byol_jax.data.shards import find
from byol_jax.data.shards.find import find_shards
from tests.shard_files import pictures, write_parquet, write_tars, write_tfrecords

OPTIONS = {"image_size": 14, "num_channels": 3}


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"shard")
    return root


def names_in(source):
    found = find_shards(source)
    return None if found is None else [shard.name for shard in found.files]


MIXED = (
    ("train-000.tar", "val-000.tar"),
    ("train/part-000.tar", "test/part-000.tar"),
    ("train/0000.parquet", "test/0000.parquet"),
    ("imagenet1k-train-0000.tar", "imagenet1k-validation-0000.tar"),
    ("train/000.tar", "train/dev-000.tar"),
    ("Train_0.tfrecord", "Valid_0.tfrecord"),
    ("training-000.tar", "testing-000.tar"),
    ("a1-train.tar", "b1-train.tar", "[c]-val.tar"),
)
ALONE = (
    ("val-000.tar", "valid-001.tar", "validation/part-002.tar"),
    ("train/000.tar", "train-001.tar"),
    ("contest-000.tar", "latest-001.tar", "traindata-002.tar", "plain-003.tar"),
    ("train-000.tar", "000.tar"),
)


@pytest.mark.parametrize("names", MIXED)
def test_splits_are_not_mixed(tmp_path, names):
    root = touch(tmp_path / "test", *names)
    with pytest.raises(
        DataError, match=r"holds several splits, .* and |holds several splits, .*\), .*: give one of them"
    ):
        find_shards(root)
    memory = fsspec.filesystem("memory")
    memory.put(str(root), "/splits", recursive=True)
    try:
        with pytest.raises(DataError, match="holds several splits"):
            find_shards("memory://splits")
    finally:
        memory.rm("/splits", recursive=True)
    for name in names:
        assert names_in(root / name) == [os.path.basename(name)]


@pytest.mark.parametrize("names", MIXED)
def test_the_pattern_that_a_refusal_advises_gives_one_split_whole(tmp_path, names):
    root = touch(tmp_path / "of [two]", *names)
    with pytest.raises(DataError) as caught:
        find_shards(root)
    (advised,) = re.findall(r"give one of them, '(.*)' for one, or name all", str(caught.value))
    found = find_shards(advised)
    assert found.notes == ()
    paths = {os.path.relpath(shard.path, root) for shard in found.files}
    rest = set(names) - paths
    assert rest < set(names)
    assert rest
    for name in rest:  # none of them is of the same split: together they are refused too
        with pytest.raises(DataError, match="holds several splits"):
            find_shards(touch(tmp_path / f"with {os.path.basename(name)}", *paths, name))


@pytest.mark.parametrize("names", ALONE)
def test_what_names_one_split_or_none_is_one(tmp_path, names):
    assert names_in(touch(tmp_path, *names)) == sorted(names)


def test_shards_of_which_only_some_name_a_split_are_all_read_and_that_is_said(tmp_path):
    root = write_tars(tmp_path / "shards", pictures(9), 3)
    (root / "shard-001.tar").rename(root / "val-001.tar")
    dataset = open_dataset(root, **OPTIONS)
    assert len(dataset) == 9
    assert dataset.notes == (
        "1 of 3 shards are named val ('val-001.tar' for one), the others aren't ('shard-000.tar' for one): all are"
        f" read; for val alone give '{root}/val-*.tar'",
    )
    alone = open_dataset(f"{root}/val-*.tar", **OPTIONS)
    assert (len(alone), alone.notes) == (3, ())
    assert open_dataset(f"{root}/{{shard,val}}-*.tar", **OPTIONS).notes == ()


def test_a_pattern_that_names_the_splits_gives_them_all(tmp_path):
    touch(tmp_path, "train-000.tar", "val-000.tar")
    assert names_in(tmp_path / "{train,val}-*.tar") == ["train-000.tar", "val-000.tar"]
    with pytest.raises(DataError, match="holds several splits"):
        find_shards(tmp_path / "*-{000..000}.tar")


@pytest.mark.parametrize(
    ("plain", "packed"),
    [
        ("a.tar", "b.tar.gz"),
        ("a.tar", "b.tgz"),
        ("a.tfrecord", "b.tfrecord.gz"),
        ("a.tfrecord-00000-of-00002", "a.tfrecord-00001-of-00002.gz"),
        ("a.parquet", "sub/b.parquet.gz"),
    ],
)
def test_compressed_shards_beside_plain_ones_are_refused(tmp_path, plain, packed):
    touch(tmp_path, plain, packed)
    with pytest.raises(DataError, match=rf"{re.escape(packed)}: a compressed shard can't be read in place"):
        find_shards(tmp_path)
    (tmp_path / plain).unlink()
    with pytest.raises(DataError, match="a compressed shard can't be read in place"):
        find_shards(tmp_path)


def test_arrays_beside_fewer_shards_are_not_silently_left_out(tmp_path):
    for number in range(4):
        np.save(tmp_path / f"{number}.npy", np.zeros((8, 8, 3), np.uint8))
    touch(tmp_path, "backup.tar.gz")
    assert len(open_dataset(tmp_path)) == 4
    touch(tmp_path, "backup.tar")
    with pytest.raises(DataError, match=r"holds 4 .npy files beside 2 shards \('backup.tar' for one\), and"):
        open_dataset(tmp_path)
    assert names_in(tmp_path / "*.tar") == ["backup.tar"]


def test_the_first_image_ends_the_search_for_shards(tmp_path, monkeypatch):
    touch(tmp_path, *(f"{number}.png" for number in range(9)))
    asked, is_image_name = [], find.is_image_name
    monkeypatch.setattr(find, "is_image_name", lambda name, kind: asked.append(name) or is_image_name(name, kind))
    assert find_shards(tmp_path) is None
    assert len(asked) == 1


def test_a_link_to_nothing_and_a_folder_are_refused_by_name(tmp_path):
    write_tars(tmp_path, pictures(4), 1)
    (tmp_path / "shard-001.tar").symlink_to(tmp_path / "gone.tar")
    with pytest.raises(DataError, match=r"'.*shard-001.tar' is no file: give a pattern whose files are all there"):
        find_shards(tmp_path / "*.tar")
    (tmp_path / "a.tfrecord").mkdir()
    with pytest.raises(DataError, match=r"'.*a.tfrecord' is no file"):
        find_shards(tmp_path / "*.tfrecord")


def test_names_stay_what_they_are_when_data_is_added(tmp_path):
    root, found, kept = tmp_path / "shards", pictures(12), tmp_path / "images.json"
    write_parquet(root / "first" / "a.parquet", found)
    before = open_dataset(root, verdict_path=kept, **OPTIONS)
    assert before.names[:2] == ("first/a.parquet#000000000", "first/a.parquet#000000001")
    write_parquet(root / "second" / "b.parquet", found)
    after = open_dataset(root, verdict_path=kept, **OPTIONS)
    assert (after.names, after.identity) == (before.names, before.identity)
    records = write_tfrecords(tmp_path / "a.tfrecord", [one.data for one in found[:9]])
    nine = open_dataset(records, **OPTIONS).names
    write_tfrecords(records, [one.data for one in found])
    assert open_dataset(records, **OPTIONS).names[:9] == nine


def test_names_at_a_url_are_those_on_the_disk(tmp_path, monkeypatch):
    touch(tmp_path / "s", "a/0.tar", "b/c/1.tar")
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "s"), "/named", recursive=True)
    memory.pipe("/top.tar", b"shard")
    try:
        for pattern in ("", "/*/*.tar", "/b/c/1.tar", "/b/*/1.tar", "/b/{c,c}/1.tar"):
            assert names_in(f"memory://named{pattern}") == names_in(f"{tmp_path}/s{pattern}")
        monkeypatch.chdir(tmp_path)
        assert names_in("memory://top.tar") == names_in("memory://t*.tar") == ["top.tar"]
        assert names_in("s/b/c/1.tar") == ["1.tar"]
    finally:
        memory.rm("/named", recursive=True)
        memory.rm("/top.tar")
