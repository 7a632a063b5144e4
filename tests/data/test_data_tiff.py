"""TIFFs that tifffile writes: the very pixels, or a refusal that says what the file holds; never part of it unsaid."""

import io
import struct

import numpy as np
import pytest
import tifffile
from PIL import Image

from byol_jax import DataError
from byol_jax.data import open_dataset
from byol_jax.data.files import survey
from byol_jax.data.readers import tiff_tags
from byol_jax.data.readers.pillow import read_image
from byol_jax.data.readers.pillow_header import check_header, uniform_warnings
from byol_jax.data.unusable import UnusableImageError

NUMBERS = np.random.default_rng(0)
SIDES = (24, 40)


def save(path, data, **options):
    tifffile.imwrite(path, data, **({"photometric": "minisblack", "metadata": None} | options))
    return path


def refusal(path, channels=3):
    """The reason, as it is said when a folder is looked through."""
    try:
        check_header(path)
        read_image(path, size=None, num_channels=channels)
    except UnusableImageError as error:
        return str(error)
    raise AssertionError("read without a word")


def values(dtype, shape):
    if np.dtype(dtype).kind == "f":
        return NUMBERS.random(shape).astype(dtype)
    return NUMBERS.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def draw_layout(generator):
    """One layout that tifffile can write, as (data, options), with the pixels that it means, [H, W, C], or None."""
    dtype = generator.choice(["uint8", "uint8", "uint16", "uint16", "int8", "int16", "uint32", "float32", "float16"])
    photometric = generator.choice(["minisblack", "miniswhite", "rgb"])
    colours = 3 if photometric == "rgb" else 1
    extra = generator.choice([0, 0, 0, 1, 1, 2, 3])
    samples, pages = colours + int(extra), int(generator.choice([1, 1, 1, 1, 2, 3]))
    planar = generator.random() < 0.4 and samples > 1
    data = values(dtype, (*SIDES, samples))
    meaning = [int(one) for one in generator.integers(0, 3, extra)]  # 0: unsaid, 1: premultiplied alpha, 2: alpha
    if extra and meaning[0] == 1:
        data[..., :colours] = np.minimum(data[..., :colours], data[..., colours:][..., :1])
    written = data.transpose(2, 0, 1) if planar else data
    written = written[..., 0] if samples == 1 else written
    compression = generator.choice([None, "deflate"])
    plain = np.dtype(dtype).kind in "iu"
    options = {
        "photometric": photometric,
        "planarconfig": ("separate" if planar else "contig") if samples > 1 else None,
        "extrasamples": meaning or None,
        "compression": compression,
        "predictor": True if compression and plain and generator.random() < 0.3 else None,
        "byteorder": generator.choice(["<", ">"]),
        "bigtiff": bool(generator.random() < 0.2),
        "tile": (16, 16) if generator.random() < 0.3 else None,
    }
    if options["tile"] is None:
        options["rowsperstrip"] = int(generator.integers(1, 30))
    if pages > 1:
        written = np.stack([written] * pages)
    seen = expected(data, colours, meaning, inverted=photometric == "miniswhite") if pages == 1 else None
    return written, options, seen, colours


def expected(data, colours, meaning, *, inverted):
    """The picture in 8 bits on white; None where there is none, because of its type or its extra samples."""
    if data.dtype not in (np.uint8, np.uint16) or len(meaning) > 1 or meaning == [0]:
        return None
    numbers = data.astype(float)
    if data.dtype == np.uint16:
        numbers = np.rint(numbers / 257) if data.shape[2] == 1 else numbers // 256
    picture = 255 - numbers[..., :colours] if inverted else numbers[..., :colours]
    if meaning:
        alpha = numbers[..., colours:] / 255
        picture = picture + 255 * (1 - alpha) if meaning == [1] else picture * alpha + 255 * (1 - alpha)
    return picture


def check_layout(path, generator):
    """Whether the file is read; it has its pixels then, and else a reason that says what it holds."""
    written, options, picture, colours = draw_layout(generator)
    save(path, written, **options)
    np.testing.assert_array_equal(tifffile.imread(path), written)
    found, reason = None, "a TIFF"
    try:
        with uniform_warnings():  # Pillow takes a big-endian BigTIFF for a classic one, and its tags for corrupt
            check_header(path)
            found = read_image(path, size=None, num_channels=colours)
    except UnusableImageError as error:
        reason = str(error)
    assert reason.startswith(("a TIFF", "a planar TIFF", "a big-endian BigTIFF")), (reason, written.dtype, options)
    if found is None:
        return False
    assert picture is not None, ("read, though it holds more or other numbers", written.shape, written.dtype, options)
    assert np.abs(found - picture).max() <= (2 if options["extrasamples"] else 0), (written.dtype, options)
    return True


def test_any_layout_gives_its_pixels_or_a_reason(tmp_path):
    generator = np.random.default_rng(1)
    read = sum(check_layout(tmp_path / "a.tif", generator) for _ in range(300))
    assert 20 < read < 100


@pytest.mark.long
def test_very_many_layouts(tmp_path, share, figure):
    cases, generator = share(20_000), np.random.default_rng(2)
    read = sum(check_layout(tmp_path / "a.tif", generator) for _ in range(cases))
    figure(
        "a TIFF of a random layout, written by tifffile",
        cases=cases,
        result=f"{read:,} gave tifffile's pixels, {cases - read:,} were refused and described; none was read in part",
    )


STACK = values(np.uint16, (3, *SIDES))
LOST = {
    "a stack": ({"data": STACK}, "a TIFF of 3 pages, of which only the first"),
    "OME channels": ({"data": STACK, "ome": True, "metadata": {"axes": "CYX"}}, "a TIFF of 3 pages"),
    "two channels": ({"data": values(np.uint8, (*SIDES, 2)), "planarconfig": "contig"}, "a TIFF of 2 x uint8"),
    "five channels": (
        {"data": values(np.uint8, (*SIDES, 5)), "photometric": "rgb", "planarconfig": "contig"},
        "a TIFF of 5 x uint8, whose last samples aren't said to be colour or transparency",
    ),
    "infrared": (
        {"data": values(np.uint8, (*SIDES, 4)), "photometric": "rgb", "extrasamples": [0]},
        "a TIFF of 4 x uint8, whose last sample isn't said",
    ),
    "planar": (
        {"data": STACK, "photometric": "rgb", "planarconfig": "separate"},
        "a planar TIFF of 3 x uint16, which Pillow misreads",
    ),
    "bands": (
        {"data": values(np.uint16, (5, *SIDES)), "planarconfig": "separate"},
        "a TIFF of 5 x uint16, which Pillow doesn't read: convert it to .npy",
    ),
    "uint32": ({"data": values(np.uint32, SIDES)}, "a TIFF of uint32, whose range isn't known"),
    "int8": ({"data": values(np.int8, SIDES)}, "a TIFF of int8, whose range isn't known"),
    "float colour": (
        {"data": values(np.float32, (*SIDES, 3)), "photometric": "rgb"},
        "a TIFF of 3 x float32, which Pillow doesn't read",
    ),
}


def hide_tifffile(monkeypatch):
    """As where the extra isn't installed: with it such files are read (test_readers_tiff.py)."""
    monkeypatch.setattr(survey, "is_installed", lambda reader: False)


@pytest.mark.parametrize("name", LOST)
def test_what_would_be_lost_is_refused_by_name(tmp_path, monkeypatch, name):
    options, reason = LOST[name]
    path = save(tmp_path / "a.tif", **options)
    assert refusal(path).startswith(reason)
    hide_tifffile(monkeypatch)
    for number in range(2):
        Image.new("L", (20, 20)).save(tmp_path / f"{number}.png")
    for scan_limit in (100, 1):  # decoded before, or opened only
        dataset = open_dataset(tmp_path, image_size=14, scan_limit=scan_limit)
        assert dataset.skipped == (("a.tif", f'{refusal(path)}; or pip install "byol-jax[tiff]", which reads it'),)
    path.rename(tmp_path / "b.tif")
    (tmp_path / "0.png").unlink()
    (tmp_path / "1.png").unlink()
    with pytest.raises(DataError, match=r"1 of 1 images can't be used .*: remove, repair or convert them") as raised:
        open_dataset(tmp_path, image_size=14)
    assert "damaged" not in str(raised.value)


def entries(content, page=0):
    """Where page number `page` of a classic TIFF has its entries, how many, and the order of its bytes."""
    order = "<" if content[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", content, 4)
    for _ in range(page):
        (start,) = struct.unpack_from(order + "I", content, start + 2 + 12 * entries_at(content, start, order))
    return start, entries_at(content, start, order), order


def entries_at(content, start, order):
    return struct.unpack_from(order + "H", content, start)[0]


def with_next(path, place):
    """The file with another place of the page after the first; 0 for none."""
    content = bytearray(path.read_bytes())
    start, count, order = entries(content)
    struct.pack_into(order + "I", content, start + 2 + 12 * count, place)
    path.write_bytes(content)
    return path


def imagej(path, **options):
    text = "ImageJ=1.54f\nimages=5\nslices=5\nloop=false\n"
    return with_next(save(path, SERIES, description=text, contiguous=True, **options), 0)


def metamorph(path, **options):
    """Planes behind one page, as MetaMorph's UIC2 tag counts them, two numbers for each."""
    return with_next(save(path, SERIES, contiguous=True, extratags=[(33629, 5, 5, (1, 1) * 5, True)], **options), 0)


def truncated(path, **options):
    return save(path, SERIES, metadata={}, truncate=True, **options)


def truncated_once(path, **options):
    """As tifffile wrote it in its first years."""
    text = f"shape={SERIES.shape}"
    return with_next(save(path, SERIES, description=text, contiguous=True, **options), 0)


def volume(path, **options):
    return save(path, SERIES, volumetric=True, **options)


def tiled_volume(path, **options):
    return save(path, values(np.uint8, (16, 32, 48)), volumetric=True, tile=(16, 16, 16), **options)


SERIES = values(np.uint8, (5, *SIDES))
IN_ONE_PAGE = {
    imagej: "a TIFF of 5 pictures in one page",
    metamorph: "a TIFF of 5 pictures in one page",
    truncated: "a TIFF of 5 pictures in one page",
    truncated_once: "a TIFF of 5 pictures in one page",
    volume: "a TIFF of a volume, 5 pictures deep",
    tiled_volume: "a TIFF of a volume, 16 pictures deep",
}


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("make", IN_ONE_PAGE, ids=lambda make: make.__name__)
def test_several_pictures_in_one_page_are_refused_by_name(tmp_path, make, byteorder):
    path = make(tmp_path / "a.tif", byteorder=byteorder)
    with tifffile.TiffFile(path) as file:
        assert len(file.pages) == 1
    said = f"{IN_ONE_PAGE[make]}, of which only the first would be used: save each by itself, or as an array (.npy)"
    assert refusal(path, 1) == said
    if make in (truncated, volume) and byteorder == "<":
        assert refusal(make(tmp_path / "big.tif", bigtiff=True), 1) == said


def test_a_series_that_lacks_its_end_is_refused_too(tmp_path):
    path = imagej(tmp_path / "a.tif")
    path.write_bytes(path.read_bytes()[: -2 * 24 * 40])
    assert refusal(path, 1).startswith("a TIFF of 5 pictures in one page")


def test_a_single_picture_may_say_its_shape_and_where_it_came_from(tmp_path):
    grey, colour = SERIES[0], values(np.uint8, (*SIDES, 3))
    text = "ImageJ=1.54f\nimages=5\nslices=5\n"
    kinds = [
        (grey, {"metadata": {}}),
        (grey, {"imagej": True, "metadata": {}}),
        (grey, {"description": text}),  # one saved out of a stack, with the stack's text
        (grey, {"description": text, "compression": "deflate"}),
        (grey, {"description": '{"shape": [5, 24, 40]}'}),
        (grey, {"description": '{"shape": []} images=5'}),
        (grey, {"description": "images=5 " * 1000}),
        (grey > 99, {"metadata": {}}),
        (colour, {"metadata": {}, "photometric": "rgb"}),
        (colour.transpose(2, 0, 1), {"metadata": {}, "photometric": "rgb", "planarconfig": "separate"}),
    ]
    for data, options in kinds:
        path = save(tmp_path / "a.tif", data, **options)
        check_header(path)
        found = read_image(path, size=None, num_channels=3 if data.size == colour.size else 1)
        expected = 255 * data if data.dtype == bool else data
        expected = expected.transpose(1, 2, 0) if "planarconfig" in options else expected.reshape(found.shape)
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_pages_that_cannot_be_followed_are_no_end(tmp_path, byteorder):
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path, byteorder=byteorder) as file:
        for picture in SERIES:
            file.write(picture, photometric="minisblack", metadata=None, contiguous=False)
    whole = path.read_bytes()
    start, count, order = entries(whole, 1)
    reason = "a TIFF that names more pages than can be read: it is cut short or damaged: save its pages again"
    for length in (start, start + 1, start + 5, start + 2 + 12 * count + 3):
        path.write_bytes(whole[:length])
        assert refusal(path, 1) == reason
    path.write_bytes(whole)
    assert refusal(with_next(path, len(whole) + 1000), 1) == reason
    content = bytearray(whole)
    struct.pack_into(order + "H", content, start, 1001)  # tags of the second page
    path.write_bytes(content)
    assert refusal(path, 1) == reason
    start, _, _ = entries(whole, 3)
    path.write_bytes(whole[:start])
    assert refusal(path, 1).startswith("a TIFF of 3 or more pages")


def test_tags_that_cannot_be_read_are_said(tmp_path):
    path = save(tmp_path / "a.tif", SERIES[0], extratags=[(65000, 3, 100, (1,) * 100, True)])
    content = bytearray(path.read_bytes())
    start, count, order = entries(content)
    for place in range(start + 2, start + 2 + 12 * count, 12):
        if struct.unpack_from(order + "H", content, place)[0] == 65000:
            struct.pack_into(order + "H", content, place, 32998)
            struct.pack_into(order + "I", content, place + 8, len(content) + 1000)
    path.write_bytes(content)
    with uniform_warnings():
        assert refusal(path, 1) == "a TIFF whose tags can't be read: save it again"


def test_thumbnails_and_masks_are_no_pages(tmp_path):
    picture = values(np.uint8, SIDES)
    for kinds in ([0, 1], [0, 1, 4, 1], [1, 0], [4, 0, 0]):
        with tifffile.TiffWriter(tmp_path / "a.tif") as file:
            for kind in kinds:
                page = {0: picture, 1: picture[::2, ::2], 4: picture > 99}[kind]
                file.write(page, photometric="minisblack", subfiletype=kind, metadata=None)
        if kinds[0] == 0:
            check_header(tmp_path / "a.tif")
            np.testing.assert_array_equal(read_image(tmp_path / "a.tif", size=None, num_channels=1)[..., 0], picture)
        else:
            assert refusal(tmp_path / "a.tif").startswith("a TIFF")


def with_tag(path, tag, value):
    """The file with one number of its first page replaced, by hand: a little-endian classic TIFF."""
    content = bytearray(path.read_bytes())
    (start,) = struct.unpack_from("<I", content, 4)
    for place in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", content, start)[0], 12):
        if struct.unpack_from("<H", content, place)[0] == tag:
            struct.pack_into("<H", content, place + 8, value)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("number", "name"), [(34887, "LERC"), (50002, "JPEG XL"), (12345, "method 12345")])
def test_a_compression_that_pillow_lacks_is_named(tmp_path, number, name):
    path = with_tag(save(tmp_path / "a.tif", values(np.uint8, SIDES)), 259, number)
    assert refusal(path) == f"a TIFF of uint8, compressed by {name}, which Pillow doesn't read: convert it to .npy"


def test_a_damaged_tiff_is_called_damaged(tmp_path):
    path = save(tmp_path / "a.tif", values(np.uint8, SIDES))
    whole = path.read_bytes()
    for length in range(0, len(whole) - 100, 7):
        path.write_bytes(whole[:length])
        assert "Pillow" not in refusal(path), length


def test_tags_of_any_bytes_end_in_a_list(tmp_path):
    """Loops, counts beyond the file, pages that overlap: some pages or none, in bounded time, never an exception."""
    whole = save(tmp_path / "a.tif", np.stack([values(np.uint8, SIDES)] * 3)).read_bytes()
    generator = np.random.default_rng(3)
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(generator.integers(1, 6)):
            content[int(generator.choice([generator.integers(len(content)), generator.integers(64)]))] = int(
                generator.integers(256)
            )
        pages = tiff_tags.pages(io.BytesIO(content))
        assert len(pages) <= 3
        tiff_tags.complaint(pages)
    start = struct.unpack_from("<I", whole, 4)[0]
    count = struct.unpack_from("<H", whole, start)[0]
    looped = bytearray(whole)
    struct.pack_into("<I", looped, start + 2 + 12 * count, start)  # the page after the first is the first
    assert len(tiff_tags.pages(io.BytesIO(looped))) == 1
    many = save(tmp_path / "many.tif", np.zeros((1200, 1, 1), np.uint8), contiguous=False, rowsperstrip=1)
    assert refusal(many).startswith("a TIFF of 1000 or more pages")


def test_a_run_that_began_before_goes_on_with_what_it_saw(tmp_path):
    """Its list was made when the first page was used unsaid: it is used as it is, the same pixels again."""
    folder, verdict = tmp_path / "images", tmp_path / "images.json"
    folder.mkdir()
    first = values(np.uint8, (20, 20))
    save(folder / "a.tif", np.stack([first, first]))
    size = (folder / "a.tif").stat().st_size
    verdict.write_text(
        f'{{"format": "byol_jax verdict on a folder of images, 1", "files": [["a.tif", {size}]], "skipped": []}}'
    )
    dataset = open_dataset(folder, image_size=(18, 18), num_channels=1, verdict_path=verdict)
    assert (dataset.names, dataset.skipped) == (("a.tif",), ())
    alone = np.asarray(Image.fromarray(first).resize((21, 21), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(dataset.take([0])[0, ..., 0], alone)
