"""Files of 16 bits, from the file to the batch: their own numbers, resized in them; and which range they fill."""

import json

import numpy as np
import pytest
import tifffile
from PIL import Image

from byol_jax import ConfigurationError, DataError
from byol_jax.data import Loader, evaluation_images, open_dataset
from byol_jax.data.fit import FITS
from byol_jax.data.ranges import estimate_range, levels_of_eight_bits, parse_rule
from byol_jax.data.readers.pillow import read_image
from byol_jax.data.readers.pillow_header import Depth, check_header
from byol_jax.data.sources import ImageWarning

SIDES = (40, 60)


def numbers(channels=None, highest=65535, seed=0):
    shape = SIDES if channels is None else (*SIDES, channels)
    return np.random.default_rng(seed).integers(0, highest, shape, np.uint16, endpoint=True)


def png16(path, pixels):
    """A PNG of 16-bit samples [h, w, C], as the standard has it (Pillow writes none of colour)."""
    import struct
    import zlib

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width, channels = pixels.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    return path


def read(path, channels, **options):
    return read_image(path, num_channels=channels, dtype=np.uint16, **({"size": None} | options))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_grey_files_keep_their_numbers(tmp_path, name):
    values = numbers()
    Image.fromarray(values).save(tmp_path / name)
    assert check_header(tmp_path / name) == Depth.GREY
    np.testing.assert_array_equal(read(tmp_path / name, 1)[..., 0], values)
    np.testing.assert_array_equal(read(tmp_path / name, 3), np.repeat(values[..., None], 3, axis=-1))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("channels", [None, 3, 4])
def test_tiffs_keep_their_numbers_in_either_order_of_bytes(tmp_path, byteorder, compression, channels):
    """Beside tifffile, which wrote them. Opaque alpha changes nothing."""
    values = numbers(channels)
    if channels == 4:
        values[..., 3] = 65535
    photometric = "minisblack" if channels is None else "rgb"
    extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    options = {"photometric": photometric, "compression": compression, "byteorder": byteorder, **extra}
    tifffile.imwrite(tmp_path / "a.tif", values, **options)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), values)
    expected = values[..., None] if channels is None else values[..., :3]
    assert check_header(tmp_path / "a.tif") == (Depth.GREY if channels is None else Depth.COLOUR)
    np.testing.assert_array_equal(read(tmp_path / "a.tif", 1 if channels is None else 3), expected)


def test_colour_in_a_png_keeps_its_numbers_and_alpha_shows_white(tmp_path):
    values = numbers(4)
    values[0, :3, 3] = [0, 65535, 32768]
    np.testing.assert_array_equal(read(png16(tmp_path / "rgb.png", values[..., :3]), 3), values[..., :3])
    alpha = values[..., 3:] / 65535
    expected = np.rint(values[..., :3] * alpha + 65535 * (1 - alpha))
    found = read(png16(tmp_path / "rgba.png", values), 3)
    assert np.abs(found - expected).max() <= 1
    assert found[0, 0].tolist() == [65535] * 3


def test_luminance_of_sixteen_bits(tmp_path):
    values = numbers(3)
    found = read(png16(tmp_path / "rgb.png", values), 1)[..., 0]
    assert np.abs(found - values @ np.array([0.299, 0.587, 0.114])).max() <= 1.5  # ITU-R 601, weights of 16 bits


def test_what_pillow_gives_in_eight_bits_is_257_times_that(tmp_path):
    """Grey with alpha in a PNG, and files of 8 bits; each is known for what it is."""
    deep = png16(tmp_path / "la.png", numbers(2))
    assert check_header(deep) == Depth.LOST
    plain = tmp_path / "plain.png"
    Image.fromarray((numbers(3) >> 8).astype(np.uint8)).save(plain)
    assert check_header(plain) == Depth.EIGHT
    for path in (deep, plain):
        for size in (None, (20, 20)):
            eight = read_image(path, size=size, num_channels=3)
            np.testing.assert_array_equal(read(path, 3, size=size), eight.astype(int) * 257)


@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
@pytest.mark.parametrize("channels", [None, 3])
def test_orientation_is_undone(tmp_path, channels, orientation):
    values = numbers(channels)
    photometric = "minisblack" if channels is None else "rgb"
    tag = [(274, 3, 1, orientation, True)]
    tifffile.imwrite(tmp_path / "a.tif", values, photometric=photometric, extratags=tag)
    turned = {1: values, 3: values[::-1, ::-1], 6: np.rot90(values, -1), 7: np.rot90(values, 1)[:, ::-1][::-1, ::-1]}
    turned[7] = np.swapaxes(values[::-1, ::-1], 0, 1)
    expected = turned[orientation]
    found = read(tmp_path / "a.tif", 1 if channels is None else 3)
    np.testing.assert_array_equal(found, expected[..., None] if channels is None else expected)


@pytest.mark.parametrize("fit", FITS)
def test_resizing_is_in_sixteen_bits_and_rounded_once(tmp_path, fit):
    """Beside Pillow's own resize of the same numbers as floats; numbers below 256 keep all their levels."""
    values = numbers(highest=200)
    Image.fromarray(values).save(tmp_path / "a.png")
    found = read(tmp_path / "a.png", 1, size=(24, 24), fit=fit)[..., 0]
    expected = np.asarray(FITS[fit].resize(Image.fromarray(values.astype(np.float32)), (24, 24)))
    np.testing.assert_array_equal(found, np.rint(expected))
    assert len(np.unique(found)) > 50
    in_eight = read_image(tmp_path / "a.png", size=(24, 24), num_channels=1, fit=fit)
    assert len(np.unique(in_eight)) <= 2


def test_twelve_bits_and_white_is_zero(tmp_path):
    values = numbers()
    Image.fromarray(values).save(tmp_path / "inverted.tif", tiffinfo={262: 0})
    np.testing.assert_array_equal(read(tmp_path / "inverted.tif", 1)[..., 0], 65535 - values)


def save(folder, name, values):
    folder.mkdir(exist_ok=True)
    Image.fromarray(values).save(folder / name)


def test_a_folder_is_as_deep_as_most_of_its_files(tmp_path):
    values = [numbers(seed=seed, highest=2000) for seed in range(4)]
    for number, image in enumerate(values):
        save(tmp_path, f"{number}.png", image)
    with pytest.warns(ImageWarning, match="4 of 4 images of 16 bits fill at most a quarter of 0 to 65535"):
        dataset = open_dataset(tmp_path, num_channels=1)
    assert (dataset.dtype, dataset.range_is_known, dataset.identity["dtype"]) == ("uint16", False, "uint16")
    np.testing.assert_array_equal(dataset.take(range(4))[..., 0], values)
    np.testing.assert_array_equal(evaluation_images(dataset, [2], SIDES)[0, ..., 0], values[2])
    with Loader(dataset, batch_size=4, seed=0) as batches:
        assert next(batches).dtype == np.uint16
    eight = (numbers() >> 8).astype(np.uint8)
    for name in ("0a.png", "a0.png"):  # before the others, so that the first file is of 8 bits, and after
        save(tmp_path, name, eight)
        with pytest.warns(ImageWarning, match="of 5 images have 8 bits a channel: their numbers are multiplied by 257"):
            mixed = open_dataset(tmp_path, num_channels=1, any_range=True)
        assert mixed.range_is_known, "eight bits have one"
        row = mixed.names.index(name)
        np.testing.assert_array_equal(mixed.take([row])[0, ..., 0], eight.astype(int) * 257)
        np.testing.assert_array_equal(mixed.take([mixed.names.index("3.png")])[0, ..., 0], values[3])
        (tmp_path / name).unlink()
    for number in range(5):
        save(tmp_path, f"eight{number}.png", eight)
    with pytest.warns(ImageWarning, match="4 of 4 images of 16 bits keep at most 64 of 256 grey levels"):
        mostly = open_dataset(tmp_path, num_channels=1)
    assert (mostly.dtype, "dtype" in mostly.identity) == ("uint8", False)
    np.testing.assert_array_equal(mostly.take([8])[0, ..., 0], eight)
    np.testing.assert_array_equal(mostly.take([3])[0, ..., 0], np.rint(values[3] / 257))


def test_files_that_are_not_used_do_not_decide_the_depth(tmp_path):
    save(tmp_path, "a.png", (numbers() >> 8).astype(np.uint8))
    save(tmp_path, "b.png", (numbers() >> 8).astype(np.uint8))
    save(tmp_path, "0.png", numbers())
    whole = (tmp_path / "0.png").read_bytes()
    (tmp_path / "0.png").write_bytes(whole[: len(whole) // 2])
    dataset = open_dataset(tmp_path, num_channels=1, image_size=16)
    assert (dataset.dtype, len(dataset), "dtype" in dataset.identity) == ("uint8", 2, False)
    assert dataset.take([0]).dtype == np.uint8


def test_colour_has_a_known_range(tmp_path):
    for number in range(2):
        png16(tmp_path / f"{number}.png", numbers(3, seed=number))
    dataset = open_dataset(tmp_path)
    assert (dataset.dtype, dataset.range_is_known, dataset.narrow, dataset.remarks) == ("uint16", True, None, ())


def test_a_kept_list_keeps_the_depth(tmp_path):
    """One that an earlier version wrote says nothing of it, and means 8 bits."""
    folder, kept = tmp_path / "images", tmp_path / "images.json"
    for number in range(3):
        save(folder, f"{number}.png", numbers(seed=number))
    options = {"num_channels": 1, "image_size": 16, "verdict_path": kept}
    first, again = open_dataset(folder, **options), open_dataset(folder, **options)
    assert (again.dtype, again.range_is_known, again.identity) == ("uint16", False, first.identity)
    np.testing.assert_array_equal(again.take(range(3)), first.take(range(3)))
    content = json.loads(kept.read_bytes())
    assert (content.pop("dtype"), content.pop("is_grey")) == ("uint16", True)
    kept.write_text(json.dumps(content))
    old = open_dataset(folder, **options)
    assert (old.dtype, old.range_is_known, "dtype" in old.identity) == ("uint8", True, False)
    eight = open_dataset(folder, num_channels=1, image_size=16, dtype="uint8")
    np.testing.assert_array_equal(old.take(range(3)), eight.take(range(3)))
    kept.write_text(json.dumps(content | {"dtype": "uint32"}))
    with pytest.raises(DataError, match="can't be read"):
        open_dataset(folder, **options)


def test_a_folder_of_eight_bits_is_as_ever(tmp_path):
    for number in range(3):
        save(tmp_path, f"{number}.png", (numbers(seed=number) >> 8).astype(np.uint8))
    dataset = open_dataset(tmp_path, image_size=16, num_channels=1, verdict_path=tmp_path / "kept.json")
    assert (dataset.dtype, dataset.take([0]).dtype, dataset.remarks) == ("uint8", np.uint8, ())
    assert set(dataset.identity) == {"kind", "count", "sha256"}
    assert set(json.loads((tmp_path / "kept.json").read_bytes())) == {"format", "files", "skipped", "times"}


def test_arrays_of_sixteen_bits(tmp_path):
    images = numbers(1)[None].repeat(3, axis=0)
    for given in (images, images.astype(">u2")):
        dataset = open_dataset(given)
        assert (dataset.dtype, dataset.take([0]).dtype, dataset.range_is_known) == ("uint16", np.uint16, True)
        np.testing.assert_array_equal(dataset.take([1])[0], images[1])
    with pytest.warns(ImageWarning, match="uint16 values from 0 to 1998 fill at most a quarter of 0 to 65535"):
        open_dataset((images % 2001).astype(np.uint16))
    assert open_dataset((images % 2001).astype(np.uint16), any_range=True).narrow is not None


def test_floats_of_any_range_only_where_somebody_knows_it():
    images = np.linspace(-5, 900, 3 * 8 * 8).reshape(3, 8, 8, 1)
    with pytest.raises(
        DataError, match=r"expected floats in \[0, 1\] \(or uint8, uint16, or a value range: --value-range"
    ):
        open_dataset(images)
    assert open_dataset(images, any_range=True).take([0]).dtype == np.float32
    images[0, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="expected finite floats"):
        open_dataset(images, any_range=True)


def test_a_dtype_that_is_none_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="dtype 'int16': give 'uint8', 'uint16', 'float32' or None"):
        open_dataset(tmp_path, dtype="int16")
    with pytest.raises(ConfigurationError, match="dtype 'uint8': only for a folder"):
        open_dataset(np.zeros((3, 8, 8, 1), np.uint8), dtype="uint8")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("percentile", [99.9, 99, 75, 100])
def test_percentiles_are_numpys_of_all_pixels(dtype, percentile):
    """Of fewer images than the sample all are looked at; NumPy's "inverted_cdf" takes numbers that occur."""
    generator = np.random.default_rng(0)
    images = np.abs(generator.normal(400, 300, (5, 32, 24, 2)))
    images = (images / 4 if dtype == "uint8" else images).clip(0, 255 if dtype == "uint8" else 5000).astype(dtype)
    found = estimate_range(open_dataset(images, num_channels=2, any_range=True), percentile=percentile, seed=0)
    pixels = images.reshape(-1, 2)
    expected = [np.percentile(pixels, p, axis=0, method="inverted_cdf") for p in (100 - percentile, percentile)]
    np.testing.assert_array_equal(np.asarray(found.value_range), np.asarray(expected))
    assert (found.images, found.is_whole) == (5, False)


def test_the_sample_is_seeded_and_no_larger_than_it_should_be():
    images = np.arange(40 * 64, dtype=np.uint16).reshape(40, 8, 8, 1)
    dataset = open_dataset(images, any_range=True)
    options = {"percentile": 100, "sample": 8}
    first, again, other = (estimate_range(dataset, seed=seed, **options) for seed in (0, 0, 1))
    assert first == again != other
    assert first.images == 8
    rows = np.sort(np.random.default_rng(0).choice(40, 8, replace=False))
    assert first.value_range == ((float(images[rows].min()),), (float(images[rows].max()),))


def test_rare_objects_and_constant_images():
    images = np.zeros((4, 100, 100, 1), np.uint16)
    images[0, 0, 0] = 1234
    found = estimate_range(open_dataset(images, any_range=True), percentile=99.9, seed=0)
    assert (found.value_range, found.is_whole) == (((0.0,), (1234.0,)), True)
    images[0, 0, 0] = 0
    with pytest.raises(DataError, match="value range: all pixels of 4 images are 0: give its two numbers"):
        estimate_range(open_dataset(images, any_range=True), percentile=99.9, seed=0)


def test_levels_that_eight_bits_would_have():
    for low, high in ((0, 2000), (100, 1000), (0, 65535), (3000, 3001)):
        levels = np.unique(np.rint(np.arange(low, high + 1) * (255 / 65535)))
        assert levels_of_eight_bits(((float(low),), (float(high),)), "uint16") == len(levels)
    assert levels_of_eight_bits(((0.0, 5.0), (255.0, 9.0)), "uint8") == 5


@pytest.mark.parametrize("rule", ["automatic", "percentile", "percentile:", "percentile:50", "percentile:101", "p:99"])
def test_rules_that_are_none_are_refused(rule):
    with pytest.raises(ConfigurationError, match="expected auto, percentile:P with 50 < P <= 100"):
        parse_rule(rule)
