"""Every way in which a file in a folder can be no image: skipped and named with the reason, never a crash, a wait, or
a wrong pixel."""

import errno
import os
import socket

import numpy as np
import pytest
from PIL import Image

from byol_jax import DataError
from byol_jax.data import Loader, open_dataset


def write(folder, name, value=100, shape=(20, 20)):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(shape, value, np.uint8)).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder with 12 good images, whose grey value is their number."""
    root = tmp_path / "images"
    for number in range(12):
        write(root, f"good/{number:02}.png", number)
    return root


def truncate(path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 50, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(path):
    write(path.parent, path.name)
    content = bytearray(path.read_bytes())
    content[-20] ^= 0xFF  # inside the compressed pixels
    path.write_bytes(content)


def loop(path):
    path.symlink_to(path.name)


def sock(path):
    where = os.getcwd()
    os.chdir(path.parent)  # a socket's path has to be short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(where)


BAD = {
    "zero byte": ("bad.jpg", lambda path: path.touch(), "empty file"),
    "truncated jpeg": ("bad.jpg", truncate, "truncated"),
    "truncated png": ("bad.png", truncate, "truncated"),
    "truncated tiff": ("bad.tif", truncate, ""),
    "truncated webp": ("bad.webp", truncate, ""),
    "truncated bmp": ("bad.bmp", truncate, "truncated"),
    "flipped byte": ("bad.png", flip_a_byte, ""),
    "text": ("bad.jpg", lambda path: path.write_text("not an image"), "not an image"),
    "random bytes": ("bad.gif", lambda path: path.write_bytes(bytes(range(256)) * 9), "not an image"),
    "a program for a printer": ("bad.png", lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n"), "not an image"),
    "only a header": ("bad.png", lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "not an image"),
    "link to nothing": ("bad.jpg", lambda path: path.symlink_to("nowhere.jpg"), "link to nothing"),
    "link loop": ("bad.jpg", loop, "symbolic links"),
    "named pipe": ("bad.jpg", os.mkfifo, "not a regular file"),
    "device": ("bad.jpg", lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "socket": ("bad.jpg", sock, "not a regular file"),
    "folder": ("bad.jpg", lambda path: path.mkdir(), "folder with an image's name"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_skipped_and_named(folder, case):
    name, make, reason = BAD[case]
    make(folder / name)
    dataset = open_dataset(folder, image_size=16, num_channels=1)
    assert [skipped for skipped, _ in dataset.skipped] == [name]
    assert reason in dataset.skipped[0][1]
    assert "\n" not in dataset.skipped[0][1]
    assert dataset.take(range(12))[:, 0, 0, 0].tolist() == list(range(12))


def test_all_of_them_at_once_in_several_threads(folder):
    for number, (name, make, _) in enumerate(BAD.values()):
        make(folder / f"{number}{name}")
    for number in range(12, 20):
        write(folder, f"good/{number:02}.png", number)
    dataset = open_dataset(folder, image_size=16, num_channels=1, workers=8)
    assert len(dataset) == 20
    assert len(dataset.skipped) == len(BAD)


@pytest.mark.parametrize("factor", [1.5, 4])
def test_a_decompression_bomb_is_skipped_between_pillows_warning_and_its_error_too(folder, monkeypatch, factor):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    write(folder, "bomb.png", shape=(100, int(10 * factor)))
    dataset = open_dataset(folder, image_size=16)
    assert [name for name, _ in dataset.skipped] == ["bomb.png"]
    assert "pixels" in dataset.skipped[0][1]


@pytest.mark.parametrize("name", ["new\nline.png", "日本語 ü.PNG", "a b'\"\\.png", os.fsdecode(b"\xff\xfe.png")])
def test_any_name_that_a_file_system_allows(folder, tmp_path, name):
    write(folder, "plain.png", 77).rename(folder / name)
    options = {"image_size": 16, "num_channels": 1, "verdict_path": tmp_path / "verdict.json"}
    for _ in range(2):  # made, then read back
        dataset = open_dataset(folder, **options)
        assert name in dataset.names
        assert (dataset.take([dataset.names.index(name)]) == 77).all()


def test_a_file_that_vanishes_between_listing_and_reading_is_skipped(folder, monkeypatch):
    write(folder, "early.png")
    whole = Image.open

    def remove_then_open(*args, **options):
        (folder / "good/05.png").unlink(missing_ok=True)
        return whole(*args, **options)

    monkeypatch.setattr(Image, "open", remove_then_open)
    dataset = open_dataset(folder, image_size=16, workers=1)
    assert dataset.skipped == (("good/05.png", "no longer there"),)


def test_a_pipe_put_in_a_files_place_after_the_scan_does_not_block(folder):
    dataset = open_dataset(folder, image_size=16, num_channels=1, cache_bytes=0)
    (folder / "good/03.png").unlink()
    os.mkfifo(folder / "good/03.png")
    assert dataset.take([2, 3, 4])[:, 0, 0, 0].tolist() == [2, 4, 4]
    assert dataset.skipped == (("good/03.png", "not a regular file"),)


def test_what_vanishes_while_training_is_replaced_by_the_same_image_every_time(folder):
    options = {"image_size": 16, "num_channels": 1, "cache_bytes": 0}
    dataset, other = open_dataset(folder, **options), open_dataset(folder, **options)
    for number in (4, 5, 11):
        (folder / f"good/{number:02}.png").unlink()
    expected = [0, 1, 2, 3, 6, 6, 6, 7, 8, 9, 10, 0]
    assert dataset.take(range(12))[:, 0, 0, 0].tolist() == expected
    assert other.take(range(11, -1, -1), workers=4)[::-1, 0, 0, 0].tolist() == expected
    assert [name for name, _ in dataset.skipped] == ["good/04.png", "good/05.png", "good/11.png"]


def test_a_replacement_is_of_the_same_class(tmp_path):
    for number in range(6):
        write(tmp_path, f"{'ab'[number % 2]}/{number}.png", number)
    dataset = open_dataset(tmp_path, image_size=16, num_channels=1, with_labels=True, cache_bytes=0)
    assert dataset.take(range(6))[:, 0, 0, 0].tolist() == [0, 2, 4, 1, 3, 5]
    (tmp_path / "a/4.png").unlink()
    assert dataset.take(range(6))[:, 0, 0, 0].tolist() == [0, 2, 0, 1, 3, 5]


def test_when_over_half_vanish_while_training_the_consumer_hears_of_it(folder):
    with Loader(open_dataset(folder, image_size=16, cache_bytes=0), batch_size=4, seed=0, prefetch=1) as loader:
        next(loader)
        for path in folder.glob("good/*"):
            path.unlink()
        with pytest.raises(DataError, match=r"of 12 images could be used at first and can't be now"):
            [next(loader) for _ in range(9)]


def test_over_half_bad_ends_with_numbers_names_and_reasons(folder):
    for number in range(12):
        (folder / f"bad{number}.jpg").touch()
    assert len(open_dataset(folder, image_size=16)) == 12  # half is not over half
    (folder / "one_more.jpg").touch()
    with pytest.raises(DataError, match=r"13 of 25 images can't be used \('bad0.jpg': empty file; .*\): remove"):
        open_dataset(folder, image_size=16)


def test_no_usable_image_at_all(tmp_path):
    (tmp_path / "a.jpg").write_text("text")
    for size in (16, None):
        with pytest.raises(DataError, match=r"1 of 1 images can't be used \('a.jpg': not an image"):
            open_dataset(tmp_path, image_size=size)


def test_above_the_limit_headers_are_read_and_the_rest_is_found_on_the_way(folder):
    truncate(folder / "late.png")
    (folder / "early.jpg").write_text("text")
    dataset = open_dataset(folder, image_size=16, num_channels=1, scan_limit=5)
    assert [name for name, _ in dataset.skipped] == ["early.jpg"]
    assert dataset.names[-1] == "late.png"
    assert dataset.take([12])[0, 0, 0, 0] == 0  # the next in order is the first
    assert [name for name, _ in dataset.skipped] == ["early.jpg", "late.png"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE])
def test_a_file_that_cannot_be_opened_is_named_with_the_systems_reason(folder, monkeypatch, number):
    """Put into the call, since root, who may run the tests, can open whatever has its rights taken away."""
    real = os.open

    def refuse(path, *arguments, **options):
        if str(path).endswith("07.png"):
            raise OSError(number, os.strerror(number))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    dataset = open_dataset(folder, image_size=16, num_channels=1)
    assert dataset.skipped == (("good/07.png", os.strerror(number)),)
    assert len(dataset) == 11


def test_a_folder_that_cannot_be_entered_is_named(folder, monkeypatch):
    write(folder, "closed/a.png")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert open_dataset(folder, image_size=16).skipped == (("closed", "Permission denied"),)
