"""Files that are named as images and are something else are told what they are, and never taken for damaged ones."""

import argparse
import gzip
import io
import pickle
import zipfile

import numpy as np
import pytest
from PIL import Image, features

from byol_jax import DataError
from byol_jax.cli.values import data_source
from byol_jax.data import open_dataset
from byol_jax.data.files.image_names import ANY_EXTENSIONS
from byol_jax.data.readers.foreign import LONGEST, describe_foreign
from byol_jax.data.readers.open import READERS
from byol_jax.data.readers.pillow_header import check_header
from byol_jax.data.unusable import UnusableImageError
from byol_jax.file_names import describe_data


def saved(kind):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, kind)
    return buffer.getvalue()


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.png", saved("PNG"))
    return buffer.getvalue()


def stored():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((2, 8, 8, 3), np.uint8))
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
FILES = {
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
    "film": (b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", "a film"),
    "JPEG 2000": (saved("JPEG2000"), "JPEG 2000"),
    "its codestream": (b"\xff\x4f\xff\x51\0\x2f", "JPEG 2000"),
    "JPEG XL": (b"\xff\x0a\x7a\x10", "JPEG XL"),
    "its container": (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL"),
    "LFS": (LFS, "git lfs pull"),
    "page": (b"\n<!DOCTYPE html><html><title>404</title></html>", "a web page"),
    "page with a mark": (b"\xef\xbb\xbf<HTML lang=en>", "a web page"),
    "SVG": (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    "PDF": (saved("PDF"), "a PDF"),
    "gzip": (gzip.compress(saved("PNG")), "an archive"),
    "zip": (zipped(), "an archive"),
    "array": (stored(), "a NumPy array"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_foreign_file_is_called_by_its_name(name, tmp_path):
    content, words = FILES[name]
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UnusableImageError) as caught:
        check_header(tmp_path / "a.jpg")
    assert words in str(caught.value)
    assert "damaged" not in str(caught.value)


@pytest.mark.parametrize("encoder", ["jpegxl", "avif", "jpeg2k"])
def test_what_imagecodecs_writes_is_named_and_a_folder_goes_on(tmp_path, encoder):
    imagecodecs = pytest.importorskip("imagecodecs")
    content = getattr(imagecodecs, f"{encoder}_encode")(np.full((20, 20, 3), 200, np.uint8))
    (tmp_path / "b.png").write_bytes(saved("PNG"))
    (tmp_path / "a.jpg").write_bytes(content)
    (skipped,) = open_dataset(tmp_path, image_size=16).skipped
    words = {"jpegxl": "JPEG XL", "avif": "AVIF", "jpeg2k": "JPEG 2000"}[encoder]
    assert (skipped[0], words in skipped[1]) == ("a.jpg", True), skipped


@pytest.mark.skipif(not features.check("avif"), reason="Pillow is built without AVIF")
def test_what_pillow_could_read_is_left_out_too(tmp_path):
    (tmp_path / "a.jpg").write_bytes(saved("AVIF"))
    with pytest.raises(UnusableImageError, match="AVIF"):
        check_header(tmp_path / "a.jpg")


@pytest.mark.parametrize("content", [b"text", b"\0" * 100, b"\xff\xd8\xff", bytes(range(256)) * 4])
def test_what_nothing_is_known_of_may_be_damaged(content, tmp_path):
    assert describe_foreign(content) is None
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UnusableImageError, match=r"damaged|truncated|broken"):
        check_header(tmp_path / "a.jpg")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_an_image_that_is_read_is_never_foreign(kind):
    assert describe_foreign(saved(kind)) is None


DATA = {
    "photos.zip": (zipped, "an archive: unpack it, and give the folder"),
    "tensors.pt": (zipped, "a pickle, which can run code and isn't read as images: np.save("),
    "arrays.PKL": (lambda: pickle.dumps(np.zeros((4, 8, 8, 3), np.uint8)), "a pickle, which can run code"),
    "weights.safetensors": (lambda: b"\2\0\0\0\0\0\0\0{}", "a file of weights, no images"),
    "images.h5": (lambda: b"\x89HDF\r\n\x1a\n", "an HDF5 or MATLAB file, which isn't read"),
    "photo.png": (lambda: saved("PNG"), "a single image: give the folder"),
    "scan.dcm": (lambda: b"", "a single image: give the folder"),
}


@pytest.mark.parametrize("name", DATA)
def test_data_that_is_no_data_is_called_by_its_name(name, tmp_path):
    make, words = DATA[name]
    (tmp_path / name).write_bytes(make())
    with pytest.raises(DataError) as caught:
        open_dataset(tmp_path / name, image_size=16)
    assert f"{name}: is {words}" in str(caught.value)
    with pytest.raises(argparse.ArgumentTypeError) as refused:
        data_source(str(tmp_path / name))
    assert f"{name}' is {words}" in str(refused.value)
    if "single" not in words:
        with pytest.raises(DataError) as alone:
            open_dataset(tmp_path, image_size=16)
        assert f"it holds '{name}': '{name}' is {words}" in str(alone.value)


def test_each_ending_of_an_image_is_that_of_a_single_image():
    for ending in ANY_EXTENSIONS - READERS["npy"].extensions:
        assert describe_data(f"a{ending}") == "a single image: give the folder that holds the images"
    assert [describe_data(name) for name in ("a.npy", "a.npz", "a.tar", "a", "notes.txt")] == [None] * 5


def test_no_more_than_the_beginning_is_looked_at():
    assert describe_foreign(b" " * LONGEST + b"<html>") is None
