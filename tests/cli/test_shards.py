"""Shards on the command line: what is wrong with them in one line; read as a folder's files are by every command."""

import tarfile

import numpy as np
import pytest

from byol_jax.cli.images import open_labelled
from tests.shard_files import pictures, write_folder, write_parquets, write_tar, write_tars

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


@pytest.mark.slow
def test_commands_read_shards_as_they_read_a_folder(call, shards):
    views = {}
    for source in ("photos", "tars/shard-{000..002}.tar", "rows"):
        answer = call("preview", source, "--out", "views.png", "--overwrite", "--image-size", "16")
        assert answer.code == 0
        views[source] = (shards / "views.png").read_bytes()
    assert views["tars/shard-{000..002}.tar"] == views["rows"]
    network = ["--network", "small_cnn", "--image-size", "16"]
    for source in ("tars", "rows"):
        assert call("embed", *network, "--data", source, "--out", f"{source}.npz").code == 0
    tars, rows = (np.load(f"{source}.npz") for source in ("tars", "rows"))
    np.testing.assert_array_equal(tars["embeddings"], rows["embeddings"])
    assert (tars["names"][0], rows["names"][0]) == ("shard-000.tar/0000.png", "train-00000-of-00002.parquet#0")
    opened = {"seed": 0, "image_size": 16, "num_channels": 3}
    for fit, measure in zip(
        open_labelled("tars", None, **opened)[:2], open_labelled("rows", None, **opened)[:2], strict=True
    ):
        np.testing.assert_array_equal(fit.labels, measure.labels)
