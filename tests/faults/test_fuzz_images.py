"""Files of measured images, damaged: each gives an image or a reason in one line, and no memory is taken.

What a damaged file makes its reader do happens in a worker process, whose memory is bounded; .npy files are read here.
"""

import io
import resource

import numpy as np
import pytest
import tifffile

from byol_jax.data.readers import guarded
from byol_jax.data.readers.reading import make_reading
from byol_jax.data.unusable import UnusableImageError

NUMBERS = np.random.default_rng(0)
STACK = NUMBERS.integers(0, 65536, (3, 24, 20), np.uint16)
READINGS = (make_reading(1), make_reading(3, bands=(1, 2, 3)))
"""Grey and colour: a file is read by the one that fits it."""


def tiff(**options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, STACK, **({"photometric": "minisblack"} | options))
    return buffer.getvalue()


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def sound_files():
    files = {
        "tiff": [
            tiff(),
            tiff(compression="zlib"),
            tiff(ome=True),
            tiff(imagej=True),
            tiff(tile=(16, 16), bigtiff=True),
        ],
        "npy": [npy(STACK[..., None]), npy(STACK[0].astype(np.float32)), npy(np.asfortranarray(STACK[0]))],
        "dicom": [],
    }
    try:
        import imagecodecs  # noqa: F401
    except ImportError:
        pass
    else:
        files["tiff"] += [tiff(compression=name) for name in ("lzw", "zstd", "lerc", "jpeg2000")]
        files["tiff"] += [tiff(compression="lzw", predictor=True)]
    try:
        import pydicom
    except ImportError:
        return files
    from pathlib import Path

    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    files["dicom"] = [path.read_bytes() for path in sorted(folder.glob("*.dcm")) if path.stat().st_size < 40_000]
    return files


def damage(content, generator):
    """Bytes flipped, numbers of two and four bytes exchanged, parts cut out or doubled."""
    content = bytearray(content)
    for _ in range(int(generator.integers(1, 4))):
        end = len(content) if generator.random() < 0.6 else min(600, len(content))  # headers lie at the start
        place = int(generator.integers(0, end))
        match int(generator.choice(5, p=[0.4, 0.2, 0.2, 0.1, 0.1])):
            case 0:
                content[place] ^= 1 << int(generator.integers(0, 8))
            case 1:
                content[place : place + 2] = int(generator.choice([0, 1, 255, 32767, 65535])).to_bytes(2, "little")
            case 2:
                wild = int(generator.choice([0, 1, 2**16, 2**31 - 1, 2**32 - 1]))
                content[place : place + 4] = wild.to_bytes(4, "little")
            case 3:
                del content[place:]
            case 4:
                content[place:place] = content[place : place + int(generator.integers(1, 64))]
        if not content:
            return b"\0"
    return bytes(content)


def try_all(path, kind):
    """Whether every image of a file was read; else the reason, which is a line."""
    try:
        try:
            reading, contents = READINGS[0], guarded.look(kind, path, READINGS[0])
        except UnusableImageError:
            reading, contents = READINGS[1], guarded.look(kind, path, READINGS[1])
        for index in range(min(len(contents.sizes), 3)):
            kept = contents.dtype if contents.dtype in ("uint8", "uint16") else "float32"
            image, _ = guarded.read(kind, path, index, reading, size=(16, 16), fit="cover", dtype=kept)
            assert image.shape == (16, 16, reading.num_channels)
            assert np.isfinite(image).all()
    except UnusableImageError as error:
        return False, str(error)
    return True, ""


def check(folder, kind, cases, seed):
    generator, originals = np.random.default_rng(seed), sound_files()[kind]
    if not originals:
        pytest.skip(f"no {kind} files without the extra")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read, deaths = 0, 0
    for case in range(cases):
        path = folder / f"a.{ {'dicom': 'dcm', 'tiff': 'tif'}.get(kind, kind) }"
        path.write_bytes(damage(originals[case % len(originals)], generator))
        was_read, reason = try_all(path, kind)
        assert reason.isprintable(), reason
        assert was_read or 0 < len(reason) < 500
        read += was_read
        deaths += "ended its process" in reason or "took longer" in reason
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 200  # MiB
    path = folder / "sound"
    path.write_bytes(originals[0])
    assert try_all(path, kind) == (True, "")
    return read, deaths


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tiff", "npy", "dicom"])
def test_damaged_files_give_an_image_or_a_reason(tmp_path, kind):
    read, _ = check(tmp_path, kind, 150, seed=0)
    assert 0 < read < 150


@pytest.mark.long
@pytest.mark.parametrize("kind", ["tiff", "npy", "dicom"])
def test_very_many_damaged_files(tmp_path, kind, share, figure):
    cases = share(100_000)
    read, deaths = check(tmp_path, kind, cases, seed=1)
    figure(
        f"a damaged {kind} file of measured images",
        cases=cases,
        result=f"{read:,} gave images, {cases - read:,} a reason; {deaths} took a worker process with them",
    )


@pytest.mark.slow
def test_a_header_that_claims_the_world_costs_no_memory(tmp_path):
    with (tmp_path / "a.npy").open("wb") as file:
        header = {"shape": (9999, 9999, 999), "fortran_order": False, "descr": "<f8"}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(100))
    assert try_all(tmp_path / "a.npy", "npy")[0] is False
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((4000, 4000), np.float64), compression="zlib", photometric="minisblack")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done, _ = try_all(path, "tiff")
    assert done  # 128 MB in the worker, and 16 x 16 numbers here
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 60
