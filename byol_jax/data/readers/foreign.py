"""What a file is that is named as an image and isn't one that is read: known by its first bytes."""

import re

__all__ = ["LONGEST", "describe_foreign"]

LONGEST = 512
"""Bytes that are looked at."""

_HEIF = "a HEIC, HEIF or AVIF picture, which isn't read: save it as JPEG or PNG"

_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (rb"(?s).{4}ftyp(?:heic|heix|heim|heis|hevc|hevx|mif1|msf1|avif|avis)", _HEIF),
    (rb"(?s).{4}ftyp", "a film, of which nothing is read: save its pictures as JPEG or PNG"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 picture, which isn't read: save it as JPEG or PNG"),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "a JPEG XL picture, which isn't read: save it as JPEG or PNG"),
    (rb"version https://git-lfs", "a pointer of Git LFS in the picture's place: git lfs pull brings the picture"),
    (rb"(?i)(?:\xef\xbb\xbf)?\s*<(?:!doctype html|html|head)", "a web page in the picture's place: load it down again"),
    (rb"(?i)(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?<svg", "an SVG drawing, which isn't read: save it as PNG"),
    (rb"%PDF-", "a PDF, which isn't read: save its pictures as JPEG or PNG"),
    (rb"\x1f\x8b|PK\x03\x04|7z\xbc\xaf|Rar!", "an archive in the picture's place: unpack it"),
    (rb"\x93NUMPY", "a NumPy array: give the .npy file itself in the folder's place"),
)
"""Patterns of a file's beginning, the first that fits counts. ftyp's brands: ISO/IEC 23008-12 and AV1's AVIF."""


def describe_foreign(beginning: bytes) -> str | None:
    """What a file with this beginning is, and the way out, in one line; None where nothing is known.

    Example:
        >>> describe_foreign(b"%PDF-1.7")
        "a PDF, which isn't read: save its pictures as JPEG or PNG"
    """
    return next((words for pattern, words in _BEGINNINGS if re.match(pattern, beginning[:LONGEST])), None)
