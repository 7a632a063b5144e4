"""Memory while a folder is looked through: bounded by the largest image that is let in, not by how many there are.

Each case is a process of its own, whose peak the kernel keeps; nothing in it loads JAX.
"""

import json
import os
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

LOOK = """
import json, resource, sys
from PIL import Image
from byol_jax.data import open_dataset

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB on Linux

Image.MAX_IMAGE_PIXELS = 10_000_000
folder, small, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
open_dataset(small, image_size=32, workers=2)  # what any folder costs: decoders, threads
before = peak()
dataset = open_dataset(folder, image_size=32, **options)
for start in range(0, len(dataset), 64):
    dataset.take(range(start, min(start + 64, len(dataset))), workers=2)
print(json.dumps([len(dataset), len(dataset.skipped), peak() - before]))
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is Linux's"),
]


def png_of_zeros(path, width, height, *, bits, colour, channels):
    """A PNG written row by row, so that making it costs no memory: a few kilobytes that decode to anything."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    compressor, row = zlib.compressobj(9), bytes(1 + (width * bits * channels + 7) // 8)
    data = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def look(tmp_path, folder, **options):
    """Usable images, skipped ones, and the peak in MiB above that of a folder with one small image."""
    png_of_zeros(tmp_path / "small" / "one.png", 8, 8, bits=8, colour=6, channels=4)
    words = [sys.executable, "-c", LOOK, str(folder), str(tmp_path / "small"), json.dumps(options)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, env=os.environ | {"MALLOC_ARENA_MAX": "2"}
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_bomb_costs_nothing(tmp_path):
    for number in range(3):
        png_of_zeros(tmp_path / "images" / f"{number}.png", 8, 8, bits=8, colour=0, channels=1)
    png_of_zeros(tmp_path / "images" / "bomb.png", 15_000, 15_000, bits=8, colour=0, channels=1)  # 225 MB of pixels
    usable, skipped, peak = look(tmp_path, tmp_path / "images")
    assert (usable, skipped) == (3, 1)
    assert peak < 16


KINDS = {"alpha": (8, 6, 4), "alpha of 16 bits": (16, 6, 4), "colour": (8, 2, 3), "grey of 16 bits": (16, 0, 1)}
KINDS["colour of 16 bits"] = (16, 2, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_image_that_is_let_in(tmp_path, kind):
    """Pillow decodes to 4 bytes a pixel, and the result has as many: 8 bytes, some MiB of strips and buffers.

    Colour of 16 bits is decoded twice, an image of upper bytes and one of lower ones, to a result of 6 bytes: 14.
    """
    bits, colour, channels = KINDS[kind]
    width, height = 3300, 3000
    png_of_zeros(tmp_path / "images" / "a.png", width, height, bits=bits, colour=colour, channels=channels)
    usable, _, peak = look(tmp_path, tmp_path / "images", workers=1)
    assert usable == 1
    assert peak < (14 if bits == 16 and channels > 1 else 8) * width * height / 2**20 + 24


def test_thousands_of_images_cost_no_more_than_one(tmp_path):
    (tmp_path / "images").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8)
    first = tmp_path / "images" / "00000.png"
    Image.fromarray(pixels).save(first)
    for number in range(1, 2000):
        os.link(first, tmp_path / "images" / f"{number:05}.png")
    usable, skipped, peak = look(tmp_path, tmp_path / "images", cache_bytes=0, scan_limit=10)
    assert (usable, skipped) == (2000, 0)
    assert peak < 16, "names, sizes and one batch; decoded they would take 60 MB, with their files 70"
