"""From files to pixels: Pillow's own pixels where it has them, known values where it would be silently wrong."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from byol_jax.data.fit import load_size
from byol_jax.data.readers.pillow import read_image
from byol_jax.data.readers.pillow_header import check_header
from byol_jax.data.unusable import UnusableImageError


@pytest.fixture
def picture():
    """A photo-like image, [60, 80, 3]: smooth, coloured, no two corners alike."""
    rows, columns = np.mgrid[0:60, 0:80]
    channels = [rows * 4, columns * 3, 128 + 100 * np.sin(rows / 9 + columns / 7)]
    return np.stack(channels, axis=-1).clip(0, 255).astype(np.uint8)


def save_image(tmp_path, image, name="image.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.TIFF", "a.webp"])
def test_lossless_formats_give_their_very_pixels(tmp_path, picture, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    path = save_image(tmp_path, Image.fromarray(picture), name, **options)
    np.testing.assert_array_equal(read_image(path, size=None, num_channels=3), picture)


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.gif"])
def test_other_formats_give_what_pillow_gives(tmp_path, picture, name):
    path = save_image(tmp_path, Image.fromarray(picture), name)
    with Image.open(path) as image:
        np.testing.assert_array_equal(read_image(path, size=None, num_channels=3), np.asarray(image.convert("RGB")))


def test_content_decides_not_the_extension(tmp_path, picture):
    path = save_image(tmp_path, Image.fromarray(picture), "really_png.jpg", format="PNG")
    np.testing.assert_array_equal(read_image(path, size=None, num_channels=3), picture)


def test_grey_is_luminance_and_grey_files_become_equal_channels(tmp_path, picture):
    path = save_image(tmp_path, Image.fromarray(picture))
    grey = read_image(path, size=None, num_channels=1)
    luminance = picture @ np.array([0.299, 0.587, 0.114])  # ITU-R 601
    assert grey.shape == (60, 80, 1)
    assert np.abs(grey[..., 0] - luminance).max() <= 1
    path = save_image(tmp_path, Image.fromarray(grey[..., 0]), "grey.png")
    np.testing.assert_array_equal(read_image(path, size=None, num_channels=3), np.repeat(grey, 3, axis=-1))
    np.testing.assert_array_equal(read_image(path, size=None, num_channels=1), grey)


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_sixteen_bits_are_scaled_never_clipped_or_wrapped(tmp_path, name):
    values = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    path = save_image(tmp_path, Image.fromarray(values), name)
    expected = np.rint(values / 65535 * 255)
    np.testing.assert_array_equal(read_image(path, size=None, num_channels=1)[..., 0], expected)


def test_big_endian_and_white_is_zero_tiffs_of_sixteen_bits(tmp_path):
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    path = save_image(tmp_path, Image.frombytes("I;16B", (8, 8), values.astype(">u2").tobytes()), "big.tif")
    np.testing.assert_array_equal(read_image(path, size=None, num_channels=1)[..., 0], np.rint(values / 257))
    path = save_image(tmp_path, Image.fromarray(values), "inverted.tif", tiffinfo={262: 0})
    np.testing.assert_array_equal(read_image(path, size=None, num_channels=1)[..., 0], 255 - np.rint(values / 257))


def test_twelve_bits_are_scaled_by_their_own_range(tmp_path):
    """A TIFF by hand, since Pillow writes none: two pixels of 12 bits, 0x000 and 0xFFF, in three bytes."""
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    path = tmp_path / "twelve.tif"
    path.write_bytes(b"II*\0" + struct.pack("<I", 12) + b"\x00\x0f\xff\0" + struct.pack("<H", 9) + directory + bytes(4))
    assert read_image(path, size=None, num_channels=1).tolist() == [[[0], [255]]]


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_of_unknown_range_are_refused(tmp_path, kind):
    path = save_image(tmp_path, Image.fromarray(np.arange(64, dtype=kind).reshape(8, 8)), "wide.tif")
    with pytest.raises(UnusableImageError, match="no known range"):
        read_image(path, size=None, num_channels=1)


def test_transparency_shows_white_not_what_hides_below_it(tmp_path):
    pixels = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)  # opaque, clear, 20 % black
    path = save_image(tmp_path, Image.fromarray(pixels))
    assert read_image(path, size=None, num_channels=3).tolist() == [[[200, 0, 0], [255, 255, 255], [204, 204, 204]]]
    path = save_image(tmp_path, Image.fromarray(np.array([[[9, 255], [9, 0]]], np.uint8)), "la.png")
    assert read_image(path, size=None, num_channels=1).tolist() == [[[9], [255]]]
    for channels in (1, 3):  # premultiplied grey: 50 is 200 at a quarter
        path = tmp_path / "premultiplied.tif"
        tifffile.imwrite(path, np.array([[[9, 255], [50, 64]]], np.uint8), photometric="minisblack", extrasamples=[1])
        assert np.abs(read_image(path, size=None, num_channels=channels) - [[[9], [241]]]).max() <= 1


def test_palettes_with_and_without_transparency(tmp_path):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    assert image.mode == "P"

    def pixels(**options):
        return read_image(save_image(tmp_path, image, **options), size=None, num_channels=3).tolist()

    opaque, clear = ([[[10, 20, 30], middle, [70, 80, 90]]] for middle in ([40, 50, 60], [255, 255, 255]))
    assert pixels() == opaque
    assert pixels(transparency=1) == clear
    assert pixels(transparency=b"\xff\x00\xff") == clear
    assert pixels(name="a.gif", transparency=1) == clear


def test_one_colour_may_stand_for_nothing(tmp_path):
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    path = save_image(tmp_path, image, transparency=(4, 5, 6))
    assert read_image(path, size=None, num_channels=3).tolist() == [[[1, 2, 3], [255, 255, 255]]]


def png(path, bits, colours, rows, key):
    """A PNG as the standard has it, of rows of samples (colours 0: grey, 2: RGB) and its transparent one, `key`."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = np.asarray(rows, np.uint32)
    if bits == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        digits = ["".join(f"{value:0{bits}b}" for value in row.reshape(-1)) for row in rows]
        lines = [int(row + "0" * (-len(row) % 8), 2).to_bytes(-(-len(row) // 8), "big") for row in digits]
    header = struct.pack(">IIBBBBB", rows.shape[1], len(rows), bits, colours, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + line for line in lines))
    clear = struct.pack(f">{len(key)}H", *key)
    parts = [(b"IHDR", header), (b"tRNS", clear), (b"IDAT", pixels), (b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return path


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_grey_level_may_stand_for_nothing_at_any_depth(tmp_path, bits, channels):
    highest = 2**bits - 1
    generator = np.random.default_rng(bits)
    rows = generator.integers(0, highest + 1, (5, 13))
    rows[1, 2], rows[3, 4], rows[4, 5] = 0, highest, highest // 2 + 1
    if bits == 16:
        rows[2, 2:5] = [32767, 32768, 32769]  # one in 8 bits, three in 16
    for key in {0, 1, highest // 2 + 1, highest}:
        for stated in (key, key + (3 << bits)) if bits in (2, 4, 8) else (key,):  # bits that no pixel has
            path = png(tmp_path / "a.png", bits, 0, rows, [stated])
            check_header(path)
            found = read_image(path, size=None, num_channels=channels)
            expected = np.where(rows == key, 255, (rows * 255 + highest // 2) // highest)
            np.testing.assert_array_equal(found, np.repeat(expected[..., None], channels, -1))


def test_a_colour_may_stand_for_nothing_in_eight_bits_and_is_refused_in_sixteen(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (4, 5, 3))
    rows[1, 1], rows[2, 2] = (4, 5, 6), (4, 5, 7)
    expected = rows.copy()
    expected[1, 1] = 255
    for key in ((4, 5, 6), (4 + 256, 5, 6 + 512)):
        path = png(tmp_path / "a.png", 8, 2, rows, key)
        check_header(path)
        np.testing.assert_array_equal(read_image(path, size=None, num_channels=3), expected)
    path = png(tmp_path / "a.png", 16, 2, rows * 256, (0x0400, 0x0500, 0x0600))
    with pytest.raises(UnusableImageError, match=r"a PNG of 16-bit colour in which one colour is transparent \(tRNS\)"):
        check_header(path)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK", "clear P"])
def test_strips_make_the_whole(tmp_path, picture, monkeypatch, mode):
    """Large images are converted strip by strip: strips of two rows and a bit, against one of all rows."""
    image = Image.fromarray(picture)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(picture[..., 0]))
    elif mode == "LA":
        image = Image.merge("LA", [image.convert("L"), Image.fromarray(picture[..., 1])])
    elif mode == "I;16":
        image = Image.fromarray(picture[..., 0].astype(np.uint16) * 257)
    else:
        image = image.convert(mode.split()[-1])
    options = {"transparency": 3} if mode == "clear P" else {}
    path = save_image(tmp_path, image, "a.tif" if mode == "CMYK" else "a.png", **options)
    for channels in (1, 3):
        whole = read_image(path, size=None, num_channels=channels)
        with monkeypatch.context() as patch:
            patch.setattr("byol_jax.data.readers.pillow._STRIP", 2 * 80 + 5)
            np.testing.assert_array_equal(read_image(path, size=None, num_channels=channels), whole)
        expected = np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(60, 80, channels)
        if mode in ("1", "L", "P", "RGB", "CMYK"):
            np.testing.assert_array_equal(whole, expected)


def test_bilevel_is_black_and_white(tmp_path):
    path = save_image(tmp_path, Image.fromarray(np.array([[True, False]])))
    assert read_image(path, size=None, num_channels=1).tolist() == [[[255], [0]]]


@pytest.mark.parametrize("ink", [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 255, 0), (0, 0, 0, 255)])
def test_cmyk_is_colour_not_four_channels(tmp_path, ink):
    path = save_image(tmp_path, Image.new("CMYK", (16, 16), ink), "ink.jpg", quality=95)
    cyan, magenta, yellow, black = ink
    expected = [max(0, 255 - each - black) for each in (cyan, magenta, yellow)]
    pixels = read_image(path, size=None, num_channels=3)
    assert pixels.shape == (16, 16, 3)
    assert np.abs(pixels.astype(int) - expected).max() <= 3


@pytest.mark.parametrize(("stored", "transform"), [("CMYK", 0), ("YCCK", 2)])
@pytest.mark.parametrize("ink", [(0, 0, 0, 0), (255, 0, 0, 0), (0, 255, 255, 0), (40, 90, 0, 60), (0, 0, 0, 255)])
def test_photoshops_cmyk_has_its_colours_however_it_is_stored(tmp_path, ink, stored, transform):
    """Inks inverted, behind Adobe's marker, which says whether they are stored as YCC: libjpeg-turbo writes it."""
    imagecodecs = pytest.importorskip("imagecodecs")
    inverted = np.broadcast_to(255 - np.array(ink, np.uint8), (16, 16, 4)).copy()
    content = imagecodecs.jpeg8_encode(inverted, level=95, colorspace="CMYK", outcolorspace=stored)
    assert content[content.index(b"Adobe") + 11] == transform
    (tmp_path / "ink.jpg").write_bytes(content)
    cyan, magenta, yellow, black = ink
    expected = [(255 - each) * (255 - black) / 255 for each in (cyan, magenta, yellow)]
    pixels = read_image(tmp_path / "ink.jpg", size=None, num_channels=3)
    assert np.abs(pixels.astype(int) - expected).max() <= 6


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["turned.jpg", "turned.png", "turned.tif", "turned.webp"])
def test_exif_orientation_is_undone(tmp_path, picture, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save_image(tmp_path, Image.fromarray(picture), name, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert expected.shape == ((80, 60, 3) if orientation >= 5 else (60, 80, 3))
    np.testing.assert_array_equal(read_image(path, size=None, num_channels=3), expected)


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for name in ("a.gif", "a.webp", "a.png"):
        options = {"lossless": True} if name.endswith("webp") else {}
        path = save_image(tmp_path, frames[0], name, save_all=True, append_images=frames[1:], **options)
        assert read_image(path, size=None, num_channels=3)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("shape", [(64, 64), (64, 128), (96, 64)])
def test_resizing_is_pillows_antialiased_resize_then_a_centre_crop(tmp_path, shape):
    """Sizes whose crop falls on whole pixels, where the one step and the two steps are the same thing."""
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    path = save_image(tmp_path, Image.fromarray(pixels))
    height, width = shape[0] // 2, shape[1] // 2
    resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - 32) // 2, (height - 32) // 2
    expected = np.asarray(resized.crop((left, top, left + 32, top + 32)))
    np.testing.assert_array_equal(read_image(path, size=(32, 32), num_channels=3), expected)


def test_the_centre_stays_the_centre_whatever_the_shape(tmp_path):
    """A symmetric image stays symmetric: nothing is shifted by half a pixel."""
    half = np.random.default_rng(1).integers(0, 256, (37, 50), np.uint8)
    path = save_image(tmp_path, Image.fromarray(np.concatenate([half, half[:, ::-1]], axis=1)))
    out = read_image(path, size=(24, 24), num_channels=1).astype(int)
    assert np.abs(out - out[:, ::-1]).max() <= 1


@pytest.mark.parametrize(("width", "size"), [(969, 57), (1024, 64), (1001, 40), (641, 32), (1159, 100)])
def test_scaled_jpeg_decoding_shifts_by_less_than_half_a_pixel(tmp_path, width, size):
    """On a ramp of 255 / size levels a pixel; 2 levels more for the compression."""
    ramp = Image.fromarray(np.linspace(0, 255, width).astype(np.uint8)[None].repeat(width, 0))
    jpeg = save_image(tmp_path, ramp, "a.jpg", quality=95)
    with Image.open(jpeg) as decoded:
        whole = save_image(tmp_path, decoded, "whole.png")
    short, long = (read_image(path, size=(size, size), num_channels=1).astype(int) for path in (jpeg, whole))
    assert np.abs(short - long).max() <= 0.5 * 255 / size + 2


@pytest.mark.parametrize("orientation", [1, 6])
def test_scaled_jpeg_decoding_is_close_to_the_long_way(tmp_path, orientation):
    rows, columns = np.mgrid[0:480, 0:720]
    waves = [128 + 100 * np.sin(rows / 40 + phase) * np.cos(columns / 30) for phase in range(3)]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.stack(waves, -1).astype(np.uint8))
    jpeg = read_image(save_image(tmp_path, image, "a.jpg", quality=95, exif=exif), size=(40, 30), num_channels=3)
    with Image.open(tmp_path / "a.jpg") as decoded:
        whole = save_image(tmp_path, ImageOps.exif_transpose(decoded), "whole.png")
    long_way = read_image(whole, size=(40, 30), num_channels=3)
    assert jpeg.shape == (40, 30, 3)
    assert np.abs(jpeg.astype(int) - long_way).max() <= 3


def test_a_turned_jpeg_is_never_decoded_smaller_than_needed(tmp_path):
    """200 × 1600 pixels that stand upright as 1600 × 200: scaled as if lying they would lose half of their width."""
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 1600, 3), np.uint8))
    path = save_image(tmp_path, noise, "a.jpg", exif=exif)
    with Image.open(path) as decoded:
        whole = save_image(tmp_path, ImageOps.exif_transpose(decoded), "whole.png")
    expected = read_image(whole, size=(40, 160), num_channels=3)
    np.testing.assert_array_equal(read_image(path, size=(40, 160), num_channels=3), expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 10_000), (10_000, 1), (2, 3)])
def test_extreme_shapes_give_the_size_asked_for(tmp_path, shape):
    path = save_image(tmp_path, Image.new("RGB", shape, (1, 2, 3)))
    out = read_image(path, size=load_size(224), num_channels=3)
    assert out.shape == (256, 256, 3)
    assert (out == [1, 2, 3]).all()


def test_load_size_leaves_the_papers_margin():
    assert load_size(224) == (256, 256)
    assert load_size((28, 56)) == (32, 64)
