"""Shards at URLs: the very images that the same files give from a disk."""

import subprocess
import sys

import fsspec
import numpy as np
import pytest

from byol_jax import DataError
from byol_jax.data import open_dataset
from byol_jax.errors import MissingDependencyError
from tests.shard_files import pictures, write_array_records, write_parquets, write_tars, write_tfrecords

OPTIONS = {"image_size": 14, "num_channels": 3}


@pytest.fixture
def root(tmp_path):
    """Shards of three kinds on a disk, and in fsspec's memory under /photos."""
    found = pictures(12)
    write_tars(tmp_path / "photos" / "tars", found)
    write_parquets(tmp_path / "photos" / "rows", found)
    write_tfrecords(tmp_path / "photos" / "records" / "a.tfrecord", [one.data for one in found])
    write_array_records(tmp_path / "photos" / "array" / "a.array_record", [one.data for one in found])
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/photos", "/photos", recursive=True)
    yield tmp_path / "photos"
    memory.rm("/photos", recursive=True)


PATTERNS = {
    "a folder of tars": ("tars", "tars"),
    "tars by number": ("tars/shard-{000..002}.tar", "tars"),
    "tars by a pattern": ("tars/shard-*.tar", "tars"),
    "rows": ("rows", "rows"),
    "records": ("records/a.tfrecord", "records"),
}


@pytest.mark.parametrize("case", PATTERNS)
def test_the_images_are_those_on_the_disk(root, case):
    pattern, folder = PATTERNS[case]
    expected = open_dataset(root / folder, **OPTIONS)
    for url in (f"memory://photos/{pattern}", f"file://{root}/{pattern}"):
        dataset = open_dataset(url, cache_bytes=0, **OPTIONS)
        assert (dataset.names, dataset.identity) == (expected.names, expected.identity)
        np.testing.assert_array_equal(dataset.take([3, 11, 0]), expected.take([3, 11, 0]))


def test_labels_come_with_them(root):
    for kind in ("tars", "rows"):
        labels = [
            open_dataset(place, with_labels=True, **OPTIONS).labels.tolist()
            for place in (root / kind, f"memory://photos/{kind}")
        ]
        assert labels[0] == labels[1] == [0, 1, 2] * 4


def test_what_vanishes_is_replaced_and_named(root):
    dataset = open_dataset("memory://photos/tars", scan_limit=0, cache_bytes=0, **OPTIONS)
    expected = dataset.take([4])
    fsspec.filesystem("memory").rm("/photos/tars/shard-000.tar")
    np.testing.assert_array_equal(dataset.take([3]), expected)
    assert [name for name, _ in dataset.skipped] == ["shard-000.tar/0003.png"]


WRONG = {
    "memory://photos/tars/shard-{000..003}.tar": "no such file as 'memory://photos/tars/shard-003.tar'",
    "memory://elsewhere": "no such file as 'memory://elsewhere'",
    "memory://photos": "holds shards of 4 kinds",
    "memory://photos/array": "ArrayRecord is read from a disk alone",
    "nowhere://photos": r"can't be listed \(Protocol not known: nowhere",
}


@pytest.mark.parametrize("url", WRONG)
def test_one_line_says_what_is_wrong(root, url):
    with pytest.raises(DataError, match=WRONG[url]):
        open_dataset(url, **OPTIONS)


def test_what_is_no_shard_is_refused(root):
    fsspec.filesystem("memory").pipe("/photos/text/a.txt", b"text")
    with pytest.raises(DataError, match="no shard is there, and of a URL only shards are read"):
        open_dataset("memory://photos/text", **OPTIONS)


def test_without_fsspec_or_what_it_needs_one_line_says_so():
    with pytest.raises(MissingDependencyError, match=r'pip install "byol-jax\[fsspec\]", and its packages \(Dropbox'):
        open_dataset("dropbox://photos/a.tar", **OPTIONS)
    program = (
        "import sys; sys.modules['fsspec'] = sys.modules['fsspec.core'] = None\n"
        "from byol_jax.data import open_dataset\n"
        "try: open_dataset('memory://photos/a.tar', image_size=14)\n"
        "except ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert 'URLs are read by fsspec, pip install "byol-jax[fsspec]"' in done.stdout
