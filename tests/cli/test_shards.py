"""Shards on the command line: what is wrong with them in one line; read as a folder's files are by every command."""

import sys
import tarfile

import numpy as np
import pytest

from byol_jax.cli.images import open_labelled
from byol_jax.data.shards.records import _packages
from tests.shard_files import (
    pictures,
    write_classes,
    write_folder,
    write_parquets,
    write_tar,
    write_tars,
    write_tfrecords,
)

TRAIN = ["--out", "run", "--steps", "1", "--network", "small_cnn", "--image-size", "16", "--batch-size", "8"]


@pytest.fixture
def shards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = pictures(12, classes=2)
    write_folder(tmp_path / "photos", found, names="{picture.label}/{picture.key}.png")
    write_tars(tmp_path / "tars", found)
    write_parquets(tmp_path / "rows", found)
    write_tar(tmp_path / "notes.tar", [("notes.txt", b"text")])
    with tarfile.open("packed.tar.gz", "w:gz") as archive:
        archive.add("photos")
    return tmp_path


WRONG = {
    "tars/shard-{000..003}.tar": "no such file as 'tars/shard-003.tar'",
    "tars/train-*.tar": "no such file as 'tars/train-*.tar'",
    "packed.tar.gz": "packed.tar.gz: a compressed shard can't be read in place: decompress it to a .tar",
    "notes.tar": "no image can be had of 1 tar file (no member is named as one",
    "tars": "--layout NCHW: only .npy and .npz files have a layout",
}


@pytest.mark.parametrize("source", WRONG)
def test_one_line_says_what_is_wrong(call, shards, source):
    more = ["--layout", "NCHW"] if "layout" in WRONG[source] else []
    answer = call("train", source, *TRAIN, *more)
    assert answer.code == 2
    assert WRONG[source] in answer.complaint
    assert not (shards / "run").exists()


ABSENT = {"rows": ("pyarrow", "parquet"), "a.tfrecord": ("grain", "grain"), "memory://a.tar": ("fsspec", "fsspec")}


@pytest.mark.parametrize("source", ABSENT)
def test_an_absent_extra_is_named_in_one_line(call, shards, monkeypatch, source):
    package, extra = ABSENT[source]
    write_tfrecords(shards / "a.tfrecord", [b""])
    _packages.cache_clear()
    for name in [package, *(name for name in sys.modules if name.startswith(f"{package}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    answer = call("train", source, *TRAIN)
    assert (answer.code, f'pip install "byol-jax[{extra}]"' in answer.complaint) == (2, True)


@pytest.mark.slow
def test_commands_read_shards_as_they_read_a_folder(call, shards):
    views = []
    for source in ("tars/shard-{000..002}.tar", "rows"):
        assert call("preview", source, "--out", "views.png", "--overwrite", "--image-size", "16").code == 0
        views.append((shards / "views.png").read_bytes())
    assert views[0] == views[1]
    opened = {"seed": 0, "image_size": 16, "num_channels": 3}
    tars, rows = (open_labelled(source, None, **opened)[:2] for source in ("tars", "rows"))
    assert [part.labels.tolist() for part in tars] == [part.labels.tolist() for part in rows]


@pytest.mark.slow
def test_embed_writes_the_labels_of_shards_as_of_folders(call, shards):
    def rows(source):
        words = ["embed", "--network", "small_cnn", "--image-size", "16", "--data", source, "--out", "x.npz"]
        answer = call(*words, "--overwrite")
        assert (answer.code, answer.err) == (0, ""), answer.err
        with np.load("x.npz") as archive:
            return dict(archive)

    photos, tars, parquet = (rows(source) for source in ("photos", "tars", "rows"))
    order = np.argsort([name.split("/")[1] for name in photos["names"]])  # a folder's order is by class
    for found in (tars, parquet):
        np.testing.assert_array_equal(found["labels"], photos["labels"][order])
        np.testing.assert_array_equal(found["embeddings"], photos["embeddings"][order])
        assert "class_names" not in found
    write_classes(shards / "named.parquet", pictures(12, classes=2), ["cat", "dog"])
    assert rows("named.parquet")["class_names"].tolist() == ["cat", "dog"]


@pytest.mark.slow
def test_embed_says_why_shards_give_no_labels(call, shards):
    write_tar(shards / "bare.tar", [(f"{one.key}.png", one.data) for one in pictures(4)])
    write_classes(shards / "unknown.parquet", pictures(4, classes=2), ["cat"])
    for source, why in (("bare.tar", "4 of 4 images have none"), ("unknown.parquet", "is 1: expected one of")):
        answer = call(
            "embed", "--network", "small_cnn", "--image-size", "16", "--data", source, "--out", f"{source}.csv"
        )
        assert (answer.code, answer.complaint.startswith("no labels: "), why in answer.complaint) == (0, True, True)
        assert (shards / f"{source}.csv").read_text().startswith("name,0,1")


@pytest.mark.slow
def test_evaluate_takes_the_parts_of_shards_as_those_of_a_folder(shards):
    found = pictures(12, classes=2)
    for part, some in (("train", found[:8]), ("val", found[8:])):
        write_tars(shards / "parted" / part, some, 2)
    train, measured, classes, text = open_labelled("parted", None, seed=0, image_size=16, num_channels=3)
    assert (train.labels.tolist(), measured.labels.tolist(), classes) == ([0, 1] * 4, [0, 1] * 2, None)
    assert text == "as in parted: train and val"
