"""Shards with bytes changed, taken out, doubled or moved: the images that are left, or one line; never a crash.

Each case is opened in this process, so that a reader in C that dies takes the test with it.
"""

import random
import struct

import numpy as np
import pytest

from byol_jax import DataError
from byol_jax.data import open_dataset
from tests.shard_files import example, members, pictures, write_array_records, write_parquet, write_tar, write_tfrecords

OPTIONS = {"image_size": 14, "num_channels": 3, "workers": 1}
FOUND = pictures(8)
EXAMPLES = [example({"image": one.data, "label": one.label}) for one in FOUND]
WRITERS = {
    "a.tar": lambda path: write_tar(path, members(FOUND)),
    "a.parquet": lambda path: write_parquet(path, FOUND),
    "a.tfrecord": lambda path: write_tfrecords(path, EXAMPLES),
    "a.array_record": lambda path: write_array_records(path, EXAMPLES),
}


def alter(whole, generator):
    """One to eight bytes changed, a piece taken out, doubled or put elsewhere, or the end cut off; the places that hold
    lengths and names, at the start, at the end and around each image, are as likely as all others together."""
    content, kind = bytearray(whole), generator.randrange(5)

    def place():
        marks = [0, len(whole) - 600, *(max(0, whole.find(one.data[:24]) - 600) for one in FOUND)]
        if generator.randrange(2):
            return min(len(whole) - 1, max(0, generator.choice(marks) + generator.randrange(600)))
        return generator.randrange(len(whole))

    start = place()
    piece = content[start : start + generator.choice((1, 4, 8, 40, 512, 700))]
    if kind == 0:
        for _ in range(generator.randrange(1, 9)):
            content[place()] = generator.randrange(256)
    elif kind == 1:
        del content[start : start + len(piece)]
    elif kind == 2:
        content[start:start] = piece
    elif kind == 3:
        other = place()
        content[other : other + len(piece)] = piece
    else:
        del content[start:]
    return bytes(content)


def check(path, whole, generator):
    """How many images an altered shard still gives; each of the right shape, and whatever is lost is said."""
    altered = alter(whole, generator)
    path.write_bytes(altered)
    try:
        dataset = open_dataset(path, with_labels=None, **OPTIONS)
        images = dataset.take(range(len(dataset)))
    except DataError as error:
        complaint = str(error)
    else:
        complaint = None
    if complaint is not None:
        assert "\n" not in complaint
        return 0
    assert (images.shape, images.dtype) == ((len(dataset), 16, 16, 3), np.uint8)
    is_sound = path.suffix == ".tfrecord" and whole.startswith(altered) and len(altered) in record_ends(whole)
    assert len(dataset) >= len(FOUND) or dataset.skipped or is_sound, "lost without a word"
    assert dataset.labels is None or len(dataset.labels) == len(dataset)
    return len(dataset)


def record_ends(whole):
    """Where the records of a file of TFRecords end. Such a file has no end mark: cut there it is a sound one."""
    ends = [0]
    while ends[-1] < len(whole):
        (length,) = struct.unpack("<Q", whole[ends[-1] : ends[-1] + 8])
        ends.append(ends[-1] + 12 + length + 4)
    return ends


@pytest.mark.parametrize("name", WRITERS)
def test_altered_in_some_places(tmp_path, name):
    whole = WRITERS[name](tmp_path / name).read_bytes()
    generator = random.Random(0)
    assert sum(check(tmp_path / name, whole, generator) for _ in range(12)) > 0


@pytest.mark.long
@pytest.mark.parametrize("name", WRITERS)
def test_altered_anywhere(tmp_path, share, figure, name):
    whole = WRITERS[name](tmp_path / name).read_bytes()
    generator, cases = random.Random(1), share(100_000)
    kept = [check(tmp_path / name, whole, generator) for _ in range(cases)]
    figure(
        f"a shard, {name.partition('.')[2]}, with bytes changed, taken out or moved",
        cases=cases,
        result=f"{kept.count(0):,} refused in one line; else {sum(kept):,} of {8 * (cases - kept.count(0)):,} images"
        " given, the others named",
    )
