"""Runs on shards and on items: the very run that the same images give as a folder, however often it is stopped."""

import io
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny_run import RECIPE, SMALL, plain_rows, states

from byol_jax import nets, pretrain
from tests.shard_files import (
    Picture,
    png,
    write_array_records,
    write_folder,
    write_parquets,
    write_tars,
    write_tfrecords,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_once")]

EVERY = ["--steps", "6", "--log-every", "1", "--checkpoint-every", "2"]
COUNT = 22
"""Two batches of 8 an epoch, so that a run of 6 steps has three orders."""


@pytest.fixture(scope="module")
def found():
    draws = np.random.default_rng(0).integers(0, 256, (COUNT, 20, 24), np.uint8)
    return [Picture(f"{number:04}", png(pixels), number % 2) for number, pixels in enumerate(draws)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory, found):
    """The same images in every form that has a place, by its name."""
    root = tmp_path_factory.mktemp("shards")
    write_folder(root / "folder", found)
    write_tars(root / "tar", found)
    write_parquets(root / "parquet", found)
    write_tfrecords(root / "tfrecord" / "a.tfrecord", [one.data for one in found])
    write_array_records(root / "array_record" / "a.array_record", [one.data for one in found])
    return root


@pytest.fixture(scope="module")
def expected(shards, compiled_once):
    from byol_jax.cli.main import main

    out = shards / "run"
    assert main([str(word) for word in ("train", shards / "folder", "--out", out, *RECIPE, *EVERY)]) == 0
    return states(out), plain_rows(out)


@pytest.mark.parametrize("kind", ["tar", "parquet", "tfrecord", "array_record"])
def test_a_run_on_shards_is_that_on_a_folder_also_where_it_is_stopped(shards, expected, command, tmp_path, kind):
    out = tmp_path / "run"
    words = ["train", shards / kind, "--out", out, *RECIPE, *EVERY]
    assert command(*words, "--steps", "4")[0] == 0
    assert command(*words, "--resume", "--workers", 3)[0] == 0
    whole, rows = expected[1], plain_rows(out)
    assert states(out) == expected[0]
    assert [{name: row[name] for name in like} for row, like in zip(rows, whole, strict=True)] == whole


def test_other_shards_are_not_gone_on_with(shards, found, command, tmp_path):
    shutil.copytree(shards / "tar", tmp_path / "tar")
    out = tmp_path / "run"
    words = ["train", tmp_path / "tar", "--out", out, *RECIPE, *EVERY]
    assert command(*words)[0] == 0
    write_tars(tmp_path / "tar", [one._replace(data=one.data + b"more") for one in found])
    code, _, errors = command(*words, "--resume")
    assert code == 2
    assert "have another size than at the first start" in errors[0]


def test_a_bad_member_is_named_and_counted(shards, command, tmp_path):
    shutil.copytree(shards / "tar", tmp_path / "tar")
    path = tmp_path / "tar" / "shard-001.tar"
    content = bytearray(path.read_bytes())
    content[0] ^= 255
    path.write_bytes(content)
    code, _, errors = command("train", tmp_path / "tar", "--out", tmp_path / "run", *RECIPE, *EVERY)
    assert code == 0
    assert errors[:1] == ["1 image can't be used and was skipped:"]
    assert errors[1] == "skipped 'shard-001.tar#0': damaged: members may be lost"


class Pictures:
    """A map-style dataset as torch has them; none of its methods is torch's."""

    def __init__(self, found):
        self.found = found

    def __len__(self):
        return len(self.found)

    def __getitem__(self, index):
        return Image.open(io.BytesIO(self.found[index].data)), self.found[index].label


def test_a_run_on_items_goes_on_as_if_it_had_never_stopped(found, tmp_path):
    options = SMALL | {"augment_fn": lambda key, image: image[:16, :16], "checkpoint_every": 2, "log_every": 1}
    pretrain(nets.small_cnn(), Pictures(found), out=tmp_path / "whole", steps=6, **options)
    pretrain(nets.small_cnn(), Pictures(found), out=tmp_path / "part", steps=4, **options)
    pretrain(nets.small_cnn(), Pictures(found), out=tmp_path / "part", steps=6, resume=True, **options)
    assert states(tmp_path / "part")[6] == states(tmp_path / "whole")[6]
