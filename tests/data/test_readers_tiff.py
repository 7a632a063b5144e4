"""TIFFs as measurements: the very numbers that were written, whatever their layout; which axes become what."""

import contextlib
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from PIL import Image

from byol_jax.data.readers.open import image_of, open_file
from byol_jax.data.readers.pillow import read_image
from byol_jax.data.readers.reading import make_reading
from byol_jax.data.unusable import UnusableImageError

NUMBERS = np.random.default_rng(0)
SIDES = (24, 40)


def values(dtype, *shape):
    if np.dtype(dtype).kind == "f":
        return NUMBERS.normal(0, 100, shape).astype(dtype)
    whole = np.iinfo(dtype)
    return NUMBERS.integers(whole.min, whole.max, shape, dtype, endpoint=True)


def save(path, data, **options):
    tifffile.imwrite(path, data, **({"photometric": "minisblack", "metadata": None} | options))
    return path


def opened(path, channels, **options):
    return open_file("tiff", path, make_reading(channels, **options), most_pixels=10**6)


def images(path, channels, *, dtype, **options):
    """Every image of a file, [N, h, w, C]."""
    reading = make_reading(channels, **options)
    file = open_file("tiff", path, reading, most_pixels=10**6)
    try:
        return np.stack(
            [
                image_of(file, index, reading, size=None, fit="cover", dtype=dtype)[0]
                for index in range(len(file.contents.sizes))
            ]
        )
    finally:
        file.close()


def refusal(path, channels, **options):
    with pytest.raises(UnusableImageError) as raised:
        images(path, channels, dtype="float32", **options)
    return str(raised.value)


LAYOUTS = {
    "contiguous": {"planarconfig": "contig"},
    "planar": {"planarconfig": "separate"},
    "tiles": {"planarconfig": "contig", "tile": (16, 16)},
    "planar tiles, deflated": {"planarconfig": "separate", "tile": (16, 16), "compression": "zlib"},
    "deflated, predicted": {"planarconfig": "contig", "compression": "zlib", "predictor": True},
    "big-endian": {"planarconfig": "contig", "byteorder": ">"},
    "BigTIFF": {"planarconfig": "separate", "bigtiff": True, "byteorder": ">"},
    "LZW": {"planarconfig": "contig", "compression": "lzw", "predictor": True},
    "zstd": {"planarconfig": "separate", "compression": "zstd"},
}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float32", "int8", "float64"])
def test_any_layout_has_the_numbers_that_were_written(tmp_path, dtype):
    for name, layout in LAYOUTS.items():
        if layout.get("compression") in ("lzw", "zstd"):
            pytest.importorskip("imagecodecs")
        for samples in (2, 5):
            data = values(dtype, *SIDES, samples)
            written = data.transpose(2, 0, 1) if layout["planarconfig"] == "separate" else data
            path = save(tmp_path / "a.tif", written, **layout)
            np.testing.assert_array_equal(tifffile.imread(path), written)
            found = images(path, samples, dtype=dtype if dtype in ("uint8", "uint16") else "float32")
            np.testing.assert_array_equal(found[0], data.astype(found.dtype), err_msg=f"{name}, {samples}")


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd"])
@pytest.mark.parametrize(("mode", "dtype"), [("L", "u1"), ("RGB", "u1"), ("I;16", "u2"), ("I", "i4"), ("F", "f4")])
def test_what_pillow_and_libtiff_write_is_read(tmp_path, mode, dtype, compression):
    """Independent writers."""
    pytest.importorskip("imagecodecs")
    channels = 3 if mode == "RGB" else 1
    data = values(dtype, *SIDES, 3) if channels == 3 else values(dtype, *SIDES)
    data = data % 2**24 if mode == "I" else data  # that float32 holds
    Image.fromarray(data).save(tmp_path / "a.tif", compression=compression)
    kept = np.dtype(dtype).name if dtype in ("u1", "u2") else "float32"
    found = images(tmp_path / "a.tif", channels, dtype=kept, tiff_axes="CS")[0]
    np.testing.assert_array_equal(found.reshape(data.shape), data)


def test_where_pillow_reads_too_both_agree(tmp_path):
    """An independent reader of the same files."""
    for dtype, channels in (("uint8", 3), ("uint8", 1), ("uint16", 1)):
        data = values(dtype, *SIDES, channels)
        data = data[..., 0] if channels == 1 else data
        path = save(tmp_path / "a.tif", data, photometric="rgb" if channels == 3 else "minisblack", compression="zlib")
        found = images(path, channels, dtype=dtype, tiff_axes="CS")[0]
        np.testing.assert_array_equal(found.reshape(data.shape), np.asarray(Image.open(path)))


def test_jpeg_in_a_tiff_is_what_it_is_elsewhere(tmp_path):
    pytest.importorskip("imagecodecs")
    smooth = np.linspace(0, 255, 64 * 64 * 3).reshape(64, 64, 3).astype(np.uint8)
    path = save(tmp_path / "a.tif", smooth, photometric="rgb", compression="jpeg", compressionargs={"level": 95})
    found = images(path, 3, dtype="uint8", tiff_axes="S")[0].astype(int)
    assert np.abs(found - np.asarray(Image.open(path).convert("RGB"))).max() <= 2  # two decoders' rounding
    assert np.abs(found - smooth).mean() < 3


HYPERSTACK = values("uint16", 2, 3, 5, *SIDES)  # T, Z, C, Y, X
TAKEN = {
    None: (5, HYPERSTACK.reshape(6, 5, *SIDES).transpose(0, 2, 3, 1), "TZ: 6 images"),
    "Z": (3, HYPERSTACK.transpose(0, 2, 3, 4, 1).reshape(10, *SIDES, 3), "Z: 3 channels, TC: 10 images"),
    "TC": (10, HYPERSTACK.transpose(1, 3, 4, 0, 2).reshape(3, *SIDES, 10), "TC: 10 channels, Z: 3 images"),
    "CT": (10, HYPERSTACK.transpose(1, 3, 4, 2, 0).reshape(3, *SIDES, 10), "3 images"),
    "S": (1, HYPERSTACK.reshape(30, *SIDES, 1), "TZC: 30 images"),
}


@pytest.mark.parametrize("axes", TAKEN)
@pytest.mark.parametrize("kind", ["ome", "imagej", "ome, deflated", "shaped"])
def test_axes_become_channels_or_images(tmp_path, kind, axes):
    options = {"metadata": {"axes": "TZCYX"}}
    options |= {"ome": kind.startswith("ome"), "imagej": kind == "imagej"}
    options |= {"compression": "zlib"} if "deflated" in kind else {}
    path = save(tmp_path / "a.tif", HYPERSTACK, **options)
    channels, expected, said = TAKEN[axes]
    np.testing.assert_array_equal(images(path, channels, dtype="uint16", tiff_axes=axes), expected)
    file = opened(path, channels, tiff_axes=axes)
    assert file.contents.said.startswith("axes TZCYX, 2 x 3 x 5 x 24 x 40; ")
    assert file.contents.said.endswith(said)
    file.close()


def test_pages_without_a_word_are_images_or_channels_where_that_is_said(tmp_path):
    stack = values("int16", 4, *SIDES)
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as writer:
        for page in stack:
            writer.write(page, photometric="minisblack", metadata=None, contiguous=False)
    np.testing.assert_array_equal(images(path, 1, dtype="float32")[..., 0], stack)
    np.testing.assert_array_equal(images(path, 4, dtype="float32", tiff_axes="I")[0], stack.transpose(1, 2, 0))
    assert refusal(path, 4) == (
        "1 channel (axes IYX, 4 x 24 x 40; I: 4 images) where 4 are wanted: say --tiff-axes I if I holds the channels,"
        " else --channels 1"
    )


def test_one_page_that_holds_many_pictures_gives_all(tmp_path):
    stack = values("uint8", 5, *SIDES)
    for options in (
        {"metadata": {}, "truncate": True},
        {"metadata": {"axes": "ZYX"}, "imagej": True},
        {"volumetric": True},
        {"volumetric": True, "tile": (16, 16, 16)},
    ):
        path = save(tmp_path / "a.tif", stack, **options)
        np.testing.assert_array_equal(images(path, 1, dtype="uint8")[..., 0], stack, err_msg=str(options))
        np.testing.assert_array_equal(images(path, 5, dtype="uint8", tiff_axes="ZQI")[0], stack.transpose(1, 2, 0))


def test_bands_are_chosen_and_ordered_and_may_come_twice(tmp_path):
    data = values("uint16", *SIDES, 5)
    path = save(tmp_path / "a.tif", data, planarconfig="contig")
    for bands in ((1,), (3, 2, 1), (5, 5, 1, 2)):
        found = images(path, None, dtype="uint16", bands=bands)
        np.testing.assert_array_equal(found[0], data[..., [band - 1 for band in bands]])
    assert refusal(path, None, bands=(6, 1)) == "5 channels, and band 6 is asked for"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_undone_as_pillow_does(tmp_path, orientation):
    path = save(tmp_path / "a.tif", values("uint8", *SIDES), extratags=[(274, 3, 1, orientation, True)])
    expected = read_image(path, size=None, num_channels=1)[..., 0]
    found = images(path, 1, dtype="uint8")
    np.testing.assert_array_equal(found[0, ..., 0], expected)
    file = opened(path, 1)
    assert file.contents.sizes == (expected.shape,)
    file.close()


def test_white_is_zero_is_turned_round(tmp_path):
    data = values("uint16", *SIDES)
    path = save(tmp_path / "a.tif", data, photometric="miniswhite")
    np.testing.assert_array_equal(images(path, 1, dtype="uint16")[0, ..., 0], 65535 - data)
    save(path, values("int16", *SIDES), photometric="miniswhite")
    assert "int16 in which white is zero" in refusal(path, 1)


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("float32", "-9999"), ("float32", "nan"), ("int16", "-32768"), ("uint8", "255"), ("uint16", "0")],
)
def test_a_geotiffs_nodata_becomes_the_channels_least_number(tmp_path, dtype, nodata):
    data = values(dtype, *SIDES, 2)
    hole = np.asarray(float(nodata), np.float64).astype(dtype)
    data[data == hole] += 1
    data[3:5, :, 0] = hole
    least = np.nanmin(np.where(np.isin(np.arange(24), [3, 4])[:, None], np.nan, data[..., 0].astype(float)))
    tags = [(42113, "s", 0, nodata, True)]
    path = save(tmp_path / "a.tif", data, planarconfig="contig", extratags=tags)
    reading = make_reading(2)
    file = open_file("tiff", path, reading, most_pixels=None)
    kept = dtype if dtype in ("uint8", "uint16") else "float32"
    found, gaps = image_of(file, 0, reading, size=None, fit="cover", dtype=kept)
    file.close()
    assert gaps == pytest.approx(2 * 40 / data.size)
    assert (found[3:5, :, 0] == least).all()
    rest = np.delete(data, [3, 4], axis=0)
    np.testing.assert_array_equal(np.delete(found, [3, 4], axis=0), rest.astype(kept))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_and_infinity_are_gaps_without_a_tag(tmp_path, dtype):
    data = values(dtype, *SIDES, 2)
    data[0, :, 0], data[1, :5, 1], data[2, 0, 1] = np.nan, np.inf, -np.inf
    finite = np.isfinite(data)
    path, reading = save(tmp_path / "a.tif", data, planarconfig="contig", byteorder=">"), make_reading(2)
    file = open_file("tiff", path, reading, most_pixels=None)
    found, gaps = image_of(file, 0, reading, size=None, fit="cover", dtype="float32")
    file.close()
    assert gaps == pytest.approx(46 / data.size)
    least = [data[..., channel][finite[..., channel]].min() for channel in (0, 1)]
    np.testing.assert_array_equal(found, np.where(finite, data, least).astype(np.float32))


@pytest.mark.parametrize("kind", ["sub-images", "pages"])
@pytest.mark.parametrize("samples", [1, 5])
def test_of_a_pyramid_the_whole_image_is_read(tmp_path, kind, samples):
    path, whole = tmp_path / "a.tif", values("uint16", 64, 96, samples)
    stored = whole if samples > 1 else whole[..., 0]
    options = {"photometric": "minisblack", "tile": (16, 16), "metadata": None}
    options |= {"planarconfig": "contig"} if samples > 1 else {}
    with tifffile.TiffWriter(path, bigtiff=True) as writer:
        writer.write(stored, subifds=2 if kind == "sub-images" else 0, **options)
        for level in (2, 4):
            writer.write(stored[::level, ::level], subfiletype=1, **options)
    np.testing.assert_array_equal(images(path, samples, dtype="uint16", tiff_axes="CS"), whole[None])


def test_where_white_is_zero_nodata_is_turned_round_too(tmp_path):
    data = NUMBERS.integers(1, 256, SIDES, np.uint8)
    data[:2] = 0
    path = save(tmp_path / "a.tif", data, photometric="miniswhite", extratags=[(42113, "s", 0, "0", True)])
    reading = make_reading(1)
    file = open_file("tiff", path, reading, most_pixels=None)
    found, gaps = image_of(file, 0, reading, size=None, fit="cover", dtype="uint8")
    file.close()
    assert gaps == 2 / SIDES[0]
    np.testing.assert_array_equal(found[2:, :, 0], 255 - data[2:])
    assert (found[:2] == 255 - data[2:].max()).all()


def test_an_axis_of_the_length_wanted_is_named(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values("uint16", 13, *SIDES), photometric="minisblack")
    said = refusal(path, 13)
    assert said.endswith("where 13 are wanted: say --tiff-axes Q if Q holds the channels, else --channels 1")
    assert refusal(path, None, bands=(13, 1)).endswith(
        "band 13 is asked for: say --tiff-axes Q if Q holds the channels"
    )
    assert refusal(path, None, bands=(14, 1)).endswith("band 14 is asked for")
    assert "--channels 1, or choose some" in refusal(path, 12)
    assert images(path, 13, dtype="uint16", tiff_axes="Q").shape == (1, *SIDES, 13)
    tifffile.imwrite(path, values("uint16", 4, 7, *SIDES), imagej=True, metadata={"axes": "ZCYX"})
    assert "say --tiff-axes Z if Z holds" in refusal(path, 4)


def test_without_a_nodata_tag_zeros_are_numbers(tmp_path):
    data = np.zeros((*SIDES, 2), np.int16)
    reading = make_reading(2)
    file = open_file("tiff", save(tmp_path / "a.tif", data, planarconfig="contig"), reading, most_pixels=None)
    assert image_of(file, 0, reading, size=None, fit="cover", dtype="float32")[1] == 0
    file.close()


def test_thumbnails_and_masks_are_left_out_and_unlike_parts_refused(tmp_path):
    path = tmp_path / "a.tif"
    data = values("float32", *SIDES)
    with tifffile.TiffWriter(path) as writer:
        writer.write(data, photometric="minisblack", metadata=None)
        writer.write(data[::2, ::2], photometric="minisblack", metadata=None, subfiletype=1)
    np.testing.assert_array_equal(images(path, 1, dtype="float32")[..., 0], data[None])
    with tifffile.TiffWriter(path) as writer:
        writer.write(data, photometric="minisblack", metadata=None)
        writer.write(values("uint8", *SIDES, 3), photometric="rgb", metadata=None)
    assert refusal(path, 1) == "a TIFF of unlike parts, 1 x float32 and 3 x uint8: save each by itself"


def test_images_of_several_sizes_in_one_file_keep_theirs(tmp_path):
    path, sizes = tmp_path / "a.tif", [(8, 9), (20, 7), (8, 9)]
    with tifffile.TiffWriter(path) as writer:
        for size in sizes:
            writer.write(values("int16", *size), photometric="minisblack", metadata=None, contiguous=False)
    file = opened(path, 1)
    assert sorted(file.contents.sizes) == sorted(sizes)
    file.close()


def cut(path, part):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    return path


@pytest.mark.parametrize("kind", ["imagej", "shaped", "ome", "deflated", "planar", "pages"])
def test_what_is_cut_short_is_refused_and_never_padded(tmp_path, kind):
    stack = values("uint16", 5, *SIDES)
    options = {
        "imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
        "shaped": {"metadata": {}, "truncate": True},
        "ome": {"ome": True, "metadata": {"axes": "ZYX"}},
        "deflated": {"compression": "zlib"},
        "planar": {"planarconfig": "separate"},
        "pages": {"contiguous": False, "metadata": None},
    }[kind]
    path = save(tmp_path / "a.tif", stack, **options)
    whole = images(path, 5, dtype="uint16", tiff_axes="SZIQ")
    for part in (0.95, 0.6, 0.3):
        save(path, stack, **options)
        with contextlib.suppress(UnusableImageError):
            found = images(cut(path, part), 5, dtype="uint16", tiff_axes="SZIQ")
            np.testing.assert_array_equal(found, whole, err_msg=f"{kind} cut at {part} was read as something else")


REFUSED = {
    "12 bits": ({"bitspersample": 12}, values("uint16", *SIDES) >> 4, "a TIFF of 12-bit numbers"),
    "a palette": (
        {"photometric": "palette", "colormap": np.zeros((3, 256), np.uint16)},
        values("uint8", *SIDES),
        "a TIFF of a palette",
    ),
    "complex numbers": ({}, values("float32", *SIDES).astype(np.complex64), "numbers of type complex64"),
    "whole numbers of 64 bits": ({}, values("int64", *SIDES), "numbers of type int64, which isn't read"),
    "nodata in words": ({"extratags": [(42113, "s", 0, "none", True)]}, values("int16", *SIDES), "nodata is 'none'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_read_rightly_is_refused_by_name(tmp_path, case):
    options, data, reason = REFUSED[case]
    if "bitspersample" in options:
        pytest.importorskip("imagecodecs")
    assert reason in refusal(save(tmp_path / "a.tif", data, **options), 1)


def test_a_page_that_differs_from_what_the_series_says_is_refused(tmp_path):
    """A frame would be decoded by the first page's tags."""
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, ome=True) as writer:
        writer.write(values("uint16", 3, *SIDES), photometric="minisblack", metadata={"axes": "ZYX"}, contiguous=False)
    with tifffile.TiffFile(path) as file:
        place = file.pages[1].aspage().tags[258].valueoffset  # bits of the second page
        kind = file.byteorder
    content = bytearray(path.read_bytes())
    content[place : place + 2] = np.array([8], kind + "u2").tobytes()
    path.write_bytes(content)
    assert refusal(path, 1) == "image 2 of 3: page 2 differs from the first in shape, numbers or compression"


def test_without_imagecodecs_a_compressed_file_names_the_extra(tmp_path):
    """In a process of its own, since tifffile looks for it once."""
    Image.fromarray(values("uint8", *SIDES)).save(tmp_path / "a.tif", compression="tiff_lzw")
    script = """
import sys
sys.modules["imagecodecs"] = None
from pathlib import Path
from byol_jax.data.readers.open import image_of, open_file
from byol_jax.data.readers.reading import make_reading
from byol_jax.data.unusable import UnusableImageError
reading = make_reading(1)
file = open_file("tiff", Path(sys.argv[1]), reading, most_pixels=None)
try:
    image_of(file, 0, reading, size=None, fit="cover", dtype="uint8")
except UnusableImageError as error:
    print(error)
"""
    words = [sys.executable, "-c", script, str(tmp_path / "a.tif")]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == 'LZW needs imagecodecs: pip install "byol-jax[tiff]"\n'
