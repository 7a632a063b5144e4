"""Which names are those of images: a folder's files by their extensions, and rows of shards. No file is looked at."""

import os
import re
from collections.abc import Collection, Iterable

from byol_jax.data.readers.open import READERS

__all__ = [
    "ANY_EXTENSIONS",
    "EXTENSIONS",
    "OTHER_EXTENSIONS",
    "extension_of",
    "extensions_of",
    "is_image_name",
    "is_row_name",
    "is_unread_name",
    "last_part",
    "say_unread",
]

EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
"""Names that end so, in either case, are taken for images."""

OTHER_EXTENSIONS = frozenset(
    f".{name}"
    for names in (
        "jfif jpe jif jp2 j2k jpx jxl avif heic heif ppm pgm pbm pnm tga dib ico pcx psd svg eps dds exr hdr",
        "dng cr2 cr3 nef arw orf rw2 raf raw dcm dicom nii mha nrrd fits czi nd2 lif lsm svs ndpi",
    )
    for name in names.split()
)
"""Names of images that aren't read: beside others they are left out, and that is said."""

_JPEG_EXTENSIONS = (".jfif", ".jpe", ".jif")

_KINDS = (EXTENSIONS, READERS["dicom"].extensions, READERS["npy"].extensions)
"""What a folder may hold: pictures and TIFFs; where there are none DICOM; where there is none of these .npy. Beside
pictures an .npy may hold labels, say."""

ANY_EXTENSIONS = frozenset[str]().union(*_KINDS)


def extensions_of(names: Iterable[str]) -> frozenset[str]:
    """The extensions that make files of these names a folder's images: of its pictures, else of DICOM, else of .npy.

    Example:
        >>> sorted(extensions_of(["scans/1.dcm", "labels.npy"]))
        ['.dcm', '.dicom']
    """
    names = list(names)
    kinds = (kind for kind in _KINDS if any(is_image_name(name, kind) for name in names))
    return next(kinds, EXTENSIONS)


def is_image_name(name: str, extensions: Collection[str] = EXTENSIONS) -> bool:
    """Whether a path's last part has one of these extensions and isn't hidden.

    Example:
        >>> is_image_name("cats/1.JPG"), is_image_name("cats/.1.jpg"), is_image_name("cats/1.heic")
        (True, False, False)
    """
    return extension_of(name) in extensions and not last_part(name).startswith(".")


def is_row_name(name: str) -> bool:
    """Whether a name is that of a part of a shard, by its number: "train.parquet#17".

    Example:
        >>> is_row_name("train.parquet#17"), is_row_name("train.parquet")
        (True, False)
    """
    return re.search(r"#\d+\Z", name) is not None


def is_unread_name(name: str) -> bool:
    """Whether a path's last part is named as an image of a kind that isn't read, and isn't hidden."""
    return is_image_name(name, OTHER_EXTENSIONS)


def say_unread(name: str) -> str:
    """Why a file whose name has one of `OTHER_EXTENSIONS` isn't read, and the way out."""
    extension = extension_of(name)
    advice = "rename it to .jpg" if extension in _JPEG_EXTENSIONS else "convert it to .png, .tif or .jpg"
    if extension in READERS["dicom"].extensions:
        return "DICOM files aren't read beside pictures: give them a folder of their own"
    return f"images named {extension} aren't read: {advice}"


def extension_of(name: str) -> str:
    """A name's extension in small letters, with its dot."""
    return os.path.splitext(name)[1].lower()


def last_part(name: str) -> str:
    """A path's last part."""
    return name.rsplit("/")[-1]
