"""Image files cut short or altered anywhere: refused, or the very pixels; never another exception, never a crash."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from byol_jax.data.readers.pillow import read_image
from byol_jax.data.readers.pillow_header import uniform_warnings
from byol_jax.data.unusable import UnusableImageError

FORMATS = {
    "a.png": {},
    "a.jpg": {},
    "progressive.jpg": {"progressive": True},
    "a.gif": {},
    "a.bmp": {},
    "a.tif": {},
    "lzw.tif": {"compression": "tiff_lzw"},
    "deflate.tif": {"compression": "tiff_deflate"},
    "jpeg.tif": {"compression": "jpeg"},
    "a.webp": {},
    "lossless.webp": {"lossless": True},
}


def photo():
    """Smooth in two thirds of its rows, noise in the others: no row compresses to nothing. [40, 50, 3]."""
    rows, columns = np.mgrid[0:40, 0:50]
    pixels = np.stack([rows * 5, columns * 4, rows * columns % 256], axis=-1).astype(np.uint8)
    pixels[::3] = np.random.default_rng(0).integers(0, 256, (14, 50, 3))
    return Image.fromarray(pixels)


def encode(name):
    buffer = io.BytesIO()
    suffix = name.rpartition(".")[2]
    photo().save(buffer, format={"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()), **FORMATS[name])
    return buffer.getvalue()


def read_or_none(path, content):
    """The pixels, or None where the file is refused with a reason of one line; nothing else may happen."""
    path.write_bytes(content)
    try:
        return read_image(path, size=(18, 18), num_channels=3)
    except UnusableImageError as error:
        reason = str(error)
    assert reason
    assert "\n" not in reason
    return None


def check_cut(path, whole, lengths):
    """How many of the cut files were used: those of which only what stands behind the pixels is missing."""
    expected = read_or_none(path, whole)
    assert expected is not None
    used = 0
    with uniform_warnings():
        for length in lengths:
            found = read_or_none(path, whole[:length])
            if found is not None:
                np.testing.assert_array_equal(found, expected)
                used += 1
    assert used <= 24
    return used


def alter(whole, generator):
    """One to four bytes changed, or a piece taken out, doubled or put elsewhere."""
    content = bytearray(whole)
    kind = generator.randrange(4)
    start = generator.randrange(len(content))
    piece = content[start : start + generator.randrange(1, 40)]
    if kind == 0:
        for _ in range(generator.randrange(1, 5)):
            content[generator.randrange(len(content))] = generator.randrange(256)
    elif kind == 1:
        del content[start : start + len(piece)]
    elif kind == 2:
        content[start:start] = piece
    else:
        place = generator.randrange(len(content))
        content[place : place + len(piece)] = piece
    return bytes(content)


def check_altered(path, whole, cases, seed):
    """How many of the altered files were used; a right shape is all that can be asked of them."""
    generator, used = random.Random(seed), 0
    with uniform_warnings():
        for _ in range(cases):
            found = read_or_none(path, alter(whole, generator))
            if found is not None:
                assert (found.shape, found.dtype) == ((18, 18, 3), np.uint8)
                used += 1
    return used


@pytest.mark.parametrize("name", FORMATS)
def test_cut_short_or_altered_in_some_places(tmp_path, name):
    whole = encode(name)
    check_cut(tmp_path / name, whole, [0, 1, 30, *range(100, len(whole), 500), len(whole) - 8, len(whole) - 1])
    assert check_altered(tmp_path / name, whole, 10, seed=0) <= 10


@pytest.mark.long
def test_cut_short_anywhere(tmp_path, share, figure):
    cases, used = 0, 0
    for name in FORMATS:
        whole = encode(name)
        lengths = share(list(range(len(whole))))
        used += check_cut(tmp_path / name, whole, lengths)
        cases += len(lengths)
    figure(
        f"an image file of {len(FORMATS)} kinds cut short at any byte",
        cases=cases,
        result=f"{cases - used:,} refused with a reason; {used} lacked only what stands behind the pixels: same pixels",
    )


@pytest.mark.long
def test_altered_anywhere(tmp_path, monkeypatch, share, figure):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)  # an altered header may ask for gigabytes otherwise
    cases, used = share(2000), 0
    for seed, name in enumerate(FORMATS):
        used += check_altered(tmp_path / name, encode(name), cases, seed)
    cases *= len(FORMATS)
    figure(
        f"an image file of {len(FORMATS)} kinds with bytes changed, taken out or moved",
        cases=cases,
        result=f"{cases - used:,} refused with a reason, {used:,} decoded to the right shape; no other exception",
    )
