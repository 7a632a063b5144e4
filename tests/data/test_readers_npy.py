"""Folders of .npy tiles: the numbers of the array, channels last, several images in a file or one."""

import numpy as np
import pytest

from byol_jax import DataError
from byol_jax.data import open_dataset
from byol_jax.data.sources import ImageWarning
from byol_jax.runs.source import say_skipped

NUMBERS = np.random.default_rng(0)


def tiles(folder, *arrays):
    folder.mkdir(parents=True, exist_ok=True)
    for number, array in enumerate(arrays):
        np.save(folder / f"{number}.npy", array)
    return folder


def take(folder, channels, **options):
    dataset = open_dataset(folder, num_channels=channels, any_range=True, **options)
    return dataset, dataset.take(range(len(dataset)))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32", "float16", "float32", ">f4", ">u2"])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.filterwarnings("ignore::byol_jax.data.sources.ImageWarning")
def test_tiles_keep_their_numbers(tmp_path, dtype, order):
    arrays = [NUMBERS.integers(0, 200, (8, 6, 5)).astype(dtype) for _ in range(3)]
    dataset, found = take(tiles(tmp_path / "tiles", *(np.asarray(a, order=order) for a in arrays)), 5)
    stored = np.dtype(dtype).newbyteorder("=")
    assert found.dtype == (stored if stored in (np.uint8, np.uint16) else np.float32)
    np.testing.assert_array_equal(found, np.stack(arrays).astype(found.dtype))
    assert dataset.names == ("0.npy", "1.npy", "2.npy")


def test_a_file_may_hold_many_images_and_grey_needs_no_last_axis(tmp_path):
    stack, one = NUMBERS.integers(0, 9, (4, 8, 6, 1), np.uint8), NUMBERS.integers(0, 9, (8, 6), np.uint8)
    dataset, found = take(tiles(tmp_path / "tiles", stack, one), 1)
    assert dataset.names == ("0.npy#1", "0.npy#2", "0.npy#3", "0.npy#4", "1.npy")
    np.testing.assert_array_equal(found, np.concatenate([stack, one[None, ..., None]]))
    _, colour = take(tmp_path / "tiles", 3)
    np.testing.assert_array_equal(colour, np.repeat(found, 3, axis=-1))


def test_beside_pictures_arrays_are_no_images_and_most_of_them_are_spoken_of(tmp_path):
    from PIL import Image

    folder = tiles(tmp_path / "tiles", np.zeros((8, 6), np.uint8), np.zeros((8, 6), np.uint8))
    Image.new("L", (6, 8)).save(folder / "a.png")
    dataset = open_dataset(folder, num_channels=1)
    assert dataset.names == ("a.png",)
    assert dataset.skipped == (
        (".npy files", "2 .npy files aren't read beside 1 other image: give them a folder of their own"),
    )
    lines = []
    say_skipped(dataset.skipped, lines.append)
    assert lines == ["2 .npy files aren't read beside 1 other image: give them a folder of their own"]
    (folder / "1.npy").unlink()
    assert open_dataset(folder, num_channels=1).skipped == ()  # labels, say


def test_images_and_not_files_are_counted(tmp_path):
    """Gaps are known of images that were decoded."""
    stack = NUMBERS.normal(0, 1, (4, 8, 6, 1)).astype(np.float32)
    stack[3, 0, 0] = np.nan
    folder = tiles(tmp_path / "tiles", stack, stack[0])
    with pytest.warns(ImageWarning, match="1 of 5 images have gaps"):
        take(folder, 1, scan_limit=5)
    take(folder, 1, scan_limit=4)  # a warning is an error
    with pytest.warns(ImageWarning, match="4 of 5 images hold numbers that float32 rounds"):
        take(tiles(folder, stack.astype(np.float64)), 1, scan_limit=0)


def test_what_is_said_of_files_that_are_not_there_is_spoken_of(tmp_path):
    folder = tiles(tmp_path / "tiles", np.zeros((8, 6, 5), np.uint8))
    with pytest.warns(ImageWarning) as said:
        open_dataset(folder, num_channels=5, tiff_axes="Z", dicom_rescale=True)
    assert [str(one.message).split(": ")[1] for one in said] == [
        "tiff_axes (--tiff-axes) without a TIFF",
        "dicom_rescale (--dicom-rescale) without a DICOM file",
    ]


def test_channels_first_are_refused_where_bands_are_given_too(tmp_path):
    folder = tiles(tmp_path / "tiles", np.zeros((13, 20, 20), np.uint8))
    with pytest.raises(DataError, match=r"shape \(13, 20, 20\) seems to have its channels first"):
        open_dataset(folder, bands=(4, 3, 2))
    with pytest.raises(DataError, match=r"shape \(13, 20, 20\) seems to have its channels first"):
        open_dataset(folder, num_channels=3)
    assert open_dataset(folder, num_channels=20).image_shape == (13, 20, 20)  # that is said
    tile = NUMBERS.integers(0, 9, (20, 20, 30), np.uint8)
    _, found = take(tiles(tmp_path / "last", tile), None, bands=(30, 1))
    np.testing.assert_array_equal(found[0], tile[..., [29, 0]])


@pytest.mark.parametrize("header", [(10**15, 8, 0, 5), (10**15, 8, 6, 5)])
@pytest.mark.parametrize("dtype", ["|u1", "|V0"])
def test_a_header_alone_makes_no_images(tmp_path, header, dtype):
    folder = tiles(tmp_path / "tiles", np.zeros((8, 6, 5), np.uint8))
    with open(folder / "bad.npy", "wb") as file:
        about = {"descr": dtype, "fortran_order": False, "shape": header}
        np.lib.format.write_array_header_1_0(file, about)
    ((name, _),) = open_dataset(folder, num_channels=5).skipped
    assert name == "bad.npy"


BAD = {
    "channels first": (np.zeros((5, 8, 6), np.uint8), "has its channels first"),
    "other channels": (np.zeros((8, 6, 4), np.uint8), "4 channels where 5 are wanted: say --channels 4"),
    "no axes": (np.zeros(5, np.uint8), r"shape \(5,\): expected \[h, w\]"),
    "truth": (np.zeros((8, 6, 5), bool), "numbers of type bool"),
    "objects": (np.array([[None]]), "Python objects"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_tile_is_named(tmp_path, case):
    array, reason = BAD[case]
    folder = tiles(tmp_path / "tiles", np.zeros((8, 6, 5), np.uint8), np.zeros((8, 6, 5), np.uint8))
    np.save(folder / "bad.npy", array)
    dataset = open_dataset(folder, num_channels=5)
    ((name, said),) = dataset.skipped
    assert name == "bad.npy"
    assert pytest.importorskip("re").search(reason, said), said


def test_a_file_shorter_than_its_header_says_is_bad(tmp_path):
    folder = tiles(tmp_path / "tiles", *[np.zeros((8, 6, 5), np.uint8)] * 3)
    whole = (folder / "1.npy").read_bytes()
    (folder / "1.npy").write_bytes(whole[:-1])
    assert [name for name, _ in open_dataset(folder, num_channels=5).skipped] == ["1.npy"]
    (folder / "1.npy").write_bytes(whole)
    dataset = open_dataset(folder, num_channels=5, cache_bytes=0)
    (folder / "1.npy").write_bytes(whole[:-1])
    dataset.take(range(3))
    assert [name for name, _ in dataset.skipped] == ["1.npy"]


def test_floats_with_gaps_are_filled_counted_and_need_a_range(tmp_path):
    first, second = NUMBERS.normal(250, 9, (2, 10, 10, 2)).astype(np.float32)
    first[2, :, 0] = [np.nan] * 9 + [np.inf]
    folder = tiles(tmp_path / "tiles", first, second)
    with pytest.warns(ImageWarning) as said:
        dataset = open_dataset(folder, num_channels=2)
    lines = [str(one.message) for one in said]
    assert any("1 of 2 images have gaps" in line and "2.5 %" in line and "'0.npy'" in line for line in lines)
    assert any("float32 of any range" in line for line in lines)
    assert (dataset.dtype, dataset.range_is_known) == ("float32", False)
    found = dataset.take([0, 1])
    assert (found[0, 2, :, 0] == np.delete(first[..., 0], 2, axis=0).min()).all()
    np.testing.assert_array_equal(found[1], second)


def test_a_folder_of_other_numbers_than_most_is_bad(tmp_path):
    arrays = [np.zeros((8, 6, 5), np.uint16), np.zeros((8, 6, 5), np.uint16), np.zeros((8, 6, 5), np.int16)]
    dataset = open_dataset(tiles(tmp_path / "tiles", *arrays), num_channels=5, any_range=True)
    assert dataset.skipped == (
        ("2.npy", "int16 numbers in a folder whose images are used in uint16: give them their own"),
    )
    with pytest.raises(DataError, match="5 channels where 4 are wanted"):
        open_dataset(tmp_path / "tiles", num_channels=4)
