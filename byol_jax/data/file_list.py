"""Which files of a folder are used: listed by their names, looked through once before training, and remembered.

A resumed run uses the list that the first start made, so it sees the same images whatever was added since. The file
that keeps a verdict is JSON: every usable name with its size in bytes, every other name with the reason; of images that
lie in blocks also these, since an epoch's order depends on them.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from byol_jax.data.decode import EXTENSIONS, OTHER_EXTENSIONS, UnusableImageError, open_without_waiting
from byol_jax.data.member import shard_kind
from byol_jax.data.order import Blocks
from byol_jax.data.readers.open import READERS
from byol_jax.disk import write_atomically
from byol_jax.errors import DataError

__all__ = [
    "ANY_EXTENSIONS",
    "LEFT_OUT_ARRAYS",
    "RUN_FORMAT",
    "Listing",
    "Verdict",
    "check_kind",
    "extensions_in",
    "extensions_of",
    "identity_of",
    "is_image_name",
    "is_row_name",
    "is_run_folder",
    "is_unread_name",
    "judge",
    "list_images",
    "load_verdict",
    "save_verdict",
    "scan",
]

SYSTEM_FOLDERS = frozenset(
    {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
)
"""What macOS, Python, Synology, Windows and Linux leave in folders: copies, thumbnails and waste, no images and no
class. Hidden folders are treated alike, Jupyter's .ipynb_checkpoints for instance."""

RUN_FORMAT = "byol_jax.run"
"""What the config.json of a run's folder says under "format": the pictures in such a folder are the run's own."""

_MOST_CONFIG = 2**20
"""Bytes of a config.json that are read to know that."""

JPEG_EXTENSIONS = (".jfif", ".jpe", ".jif")

_KINDS = (EXTENSIONS, READERS["dicom"].extensions, READERS["npy"].extensions)
"""What a folder may hold: pictures and TIFFs; where there are none DICOM; where there is none of these .npy. Beside
pictures an .npy may hold labels, say."""

ANY_EXTENSIONS = frozenset[str]().union(*_KINDS)

LEFT_OUT_ARRAYS = ".npy files"
"""What stands in a file's place where many are left out in one line."""

_FORMAT = "byol_jax verdict on a folder of images, 1"
_FORMAT_READ_BY = "byol_jax verdict on a folder of images, 2"
"""The second says which files are read by others than Pillow, and how many images each holds."""

_WINDOW = 1024
"""Files handed to the threads at a time: bounds memory with millions of files, and the wait after Ctrl-C."""


class Listing(NamedTuple):
    """What lies under a folder.

    Attributes:
        files: (name, bytes) of each regular file with an image's extension, sorted by name; names are relative to
            the folder, with "/" between parts.
        skipped: (name, reason) of everything else with such an extension, of images with another one, of hidden images,
            and of folders that can't be read or aren't entered.
        others: a few names without an extension of an image, for a message.
        extensions: that images have here, see `extensions_of`.
    """

    files: tuple[tuple[str, int], ...]
    skipped: tuple[tuple[str, str], ...]
    others: tuple[str, ...]
    extensions: frozenset[str] = EXTENSIONS


class Verdict(NamedTuple):
    """What is used of a folder, and what isn't.

    Attributes:
        files: (name, bytes) of what is used, sorted by name.
        skipped: (name, reason), sorted by name.
        shape: (height, width) that the pictures have in common, where they get it (`fit.common_shape`).
        dtype: "uint8", "uint16" or "float32", what the images are used in; is_grey: whether all are grey of 16 bits.
        read_by: of each file that isn't Pillow's its reader, a word of `READERS`, and how many images it holds.
        blocks: that the images lie in, where an epoch's order depends on them.
    """

    files: tuple[tuple[str, int], ...]
    skipped: tuple[tuple[str, str], ...]
    shape: tuple[int, int] | None = None
    dtype: str = "uint8"
    is_grey: bool = False
    read_by: Mapping[str, tuple[str, int]] = MappingProxyType({})
    blocks: Blocks | None = None

    @property
    def image_names(self) -> tuple[str, ...]:
        """One for each image: the name of its file, and where that holds several the image's number: "stack.tif#3"."""
        counts = [(name, self.read_by.get(name, ("", 1))[1]) for name, _ in self.files]
        return tuple(
            name if count == 1 else f"{name}#{number + 1}" for name, count in counts for number in range(count)
        )

    def additions(self, listing: Listing) -> tuple[tuple[str, str], ...]:
        """(name, reason) of each file that was added to the folder after the verdict, and so isn't used."""
        known = {name for name, _ in (*self.files, *self.skipped)}
        return tuple((name, "added after the first start") for name, _ in listing.files if name not in known)


def list_images(root: Path) -> Listing:
    """Lists a folder and the folders in it.

    The order depends on names alone, and no image is opened. Only names with an image's extension (`extensions_of`)
    count, in either case, and no hidden ones; hidden folders, those that systems make beside somebody's images
    (`SYSTEM_FOLDERS`), and those of our own runs aren't entered. The folder itself may be any of these.
    Links are followed and must lead to a regular file. Names may hold anything that a file system allows,
    newlines and undecodable bytes included.
    """
    names, refused = _walk(root)
    extensions = extensions_of(names)
    found = {name: _reason_or_size(root / name) for name in sorted(names) if is_image_name(name, extensions)}
    files = tuple((name, size) for name, size in found.items() if isinstance(size, int))
    skipped = refused | {name: reason for name, reason in found.items() if isinstance(reason, str)}
    skipped |= {name: _unread(name) for name in names if is_unread_name(name) and name not in found}
    skipped |= {name: "a hidden file: rename it to use it" for name in names if _is_hidden_image(name)}
    skipped |= _left_out_arrays(names, extensions) | _left_out_shards(names, len(found))
    others = tuple(sorted(set(names) - set(found))[:3])
    return Listing(files, tuple(sorted(skipped.items())), others, extensions)


def _left_out_arrays(names: list[str], extensions: frozenset[str]) -> dict[str, str]:
    """A line on .npy files that aren't read, where they are more than the images; else they are labels, say."""
    arrays, images = (sum(is_image_name(name, kind) for name in names) for kind in (_KINDS[-1], extensions))
    if extensions == _KINDS[-1] or arrays <= images:
        return {}
    others = f"{images} other image{'s' * (images != 1)}"
    return {LEFT_OUT_ARRAYS: f"{arrays} .npy files aren't read beside {others}: give them a folder of their own"}


def check_kind(root: object, listing: Listing) -> None:
    """Returns where a folder's images are of the kind that most of its files have.

    Raises:
        DataError: they are pictures beside more DICOM files, a logo for instance.
    """
    left_out = READERS["dicom"].extensions - listing.extensions
    scans, pictures = sum(is_image_name(name, left_out) for name, _ in listing.skipped), len(listing.files)
    if scans > pictures > 0:
        raise DataError(
            f"{root}: {scans} DICOM files beside {pictures} picture{'s' * (pictures != 1)} (the first:"
            f" {listing.files[0][0]!r}): give them a folder of their own"
        )


def extensions_in(root: Path) -> frozenset[str]:
    """The extensions that images have in a folder, all the folders in it included: see `extensions_of`."""
    return extensions_of(_walk(root)[0])


def _left_out_shards(names: list[str], images: int) -> dict[str, str]:
    """A line on shards, which are read where no images lie beside them."""
    shards = sorted(name for name in names if shard_kind(name))
    if not shards:
        return {}
    return {
        "shards": f"{len(shards)} shards, {shards[0]!r} for one, aren't read beside {images} images: give them alone"
    }


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
    return _has_extension(name, extensions) and not _last_part(name).startswith(".")


def is_row_name(name: str) -> bool:
    """Whether a name is that of a part of a shard, by its number: "train.parquet#17".

    Example:
        >>> is_row_name("train.parquet#17"), is_row_name("train.parquet")
        (True, False)
    """
    return re.search(r"#\d+\Z", name) is not None


def is_unread_name(name: str) -> bool:
    """Whether a path's last part is named as an image of a kind that isn't read, and isn't hidden."""
    return _has_extension(name, OTHER_EXTENSIONS) and not _last_part(name).startswith(".")


def _is_hidden_image(name: str) -> bool:
    # "._name" is what macOS leaves beside a file on other systems' disks: its attributes, never the image.
    last = _last_part(name)
    return _has_extension(name, EXTENSIONS | OTHER_EXTENSIONS) and last.startswith(".") and not last.startswith("._")


def _has_extension(name: str, extensions: Collection[str]) -> bool:
    return os.path.splitext(name)[1].lower() in extensions


def _last_part(name: str) -> str:
    return name.rsplit("/")[-1]


def _unread(name: str) -> str:
    extension = os.path.splitext(name)[1].lower()
    advice = "rename it to .jpg" if extension in JPEG_EXTENSIONS else "convert it to .png, .tif or .jpg"
    if extension in READERS["dicom"].extensions:
        return "DICOM files aren't read beside pictures: give them a folder of their own"
    return f"images named {extension} aren't read: {advice}"


def _reason_or_size(path: Path) -> str | int:
    """A file's size, or why it can't be opened. `stat` follows links and never blocks."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return "a link to nothing" if path.is_symlink() else "no longer there"
    except OSError as error:
        return error.strerror or "cannot be looked at"
    if stat.S_ISDIR(status.st_mode):
        return "a folder with an image's name"
    return status.st_size if stat.S_ISREG(status.st_mode) else "not a regular file"


def _walk(root: Path) -> tuple[list[str], dict[str, str]]:
    """Names of all under `root` that isn't a plain folder, and {folder: reason} of folders that couldn't be entered.

    Links to folders are followed after all real folders, each folder once: a loop ends, and a linked folder that is
    also really there keeps its real name.
    """
    names: list[str] = []
    refused: dict[str, str] = {}
    entered = set()
    real, linked = [""], []
    while real or linked:
        folder = real.pop() if real else linked.pop(0)
        try:
            status = (root / folder).stat()
            if (status.st_dev, status.st_ino) in entered:
                refused[folder] = "a link to a folder that was read under another name"
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(root / folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            refused[folder or "."] = error.strerror or "cannot be read"
            continue
        if folder and any(entry.name == "config.json" for entry in entries) and is_run_folder(root / folder):
            refused[folder] = "a run's folder of byol_jax: not entered"
            continue
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            if is_image_name(entry.name) or not _is_folder(entry):
                names.append(name)
            elif _is_hidden(entry.name):
                refused[name] = "a hidden folder or a system's own: not entered"
            elif entry.is_symlink():
                linked = sorted([*linked, name])
            else:
                real.append(name)
    return names, refused


def _is_hidden(folder: str) -> bool:
    return folder.startswith(".") or folder in SYSTEM_FOLDERS


def is_run_folder(folder: Path) -> bool:
    """Whether a folder is a run's of ours."""
    try:
        with open(folder / "config.json", "rb", opener=open_without_waiting) as file:
            return json.loads(file.read(_MOST_CONFIG))["format"] == RUN_FORMAT
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link loop
        return False


def scan(
    check: Callable[[int], object], count: int, *, workers: int, progress: Callable[[int, int], None] | None = None
) -> dict[int, str]:
    """Calls `check(0)` … `check(count - 1)` in threads; returns the reason for each index at which it failed.

    Args:
        check: raises `UnusableImageError` where the file behind an index can't be used. Other exceptions end the scan.
        progress: `progress(done, total)`, called from this thread.
    """

    def reason(index: int) -> str | None:
        try:
            check(index)
        except UnusableImageError as error:
            return str(error)
        return None

    reasons: dict[int, str] = {}
    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, count, _WINDOW):
            window = range(start, min(start + _WINDOW, count))
            for index, found in zip(window, pool.map(reason, window), strict=True):
                if found is not None:
                    reasons[index] = found
                if progress is not None:
                    progress(index + 1, count)
    return reasons


def judge(folder: object, listing: Listing, reasons: dict[int, str]) -> Verdict:
    """A listing without the files that failed.

    Raises:
        DataError: none is usable, or more than half of the names with an image's extension are not.
    """
    files = tuple(file for index, file in enumerate(listing.files) if index not in reasons)
    failed = tuple((listing.files[index][0], reason) for index, reason in reasons.items())
    skipped = tuple(sorted(listing.skipped + failed))
    bad = [(name, reason) for name, reason in skipped if is_image_name(name, listing.extensions) or is_row_name(name)]
    if not files or len(bad) > len(files):
        some = "; ".join(f"{name!r}: {reason}" for name, reason in (bad or skipped)[:3])
        raise DataError(
            f"{folder}: {len(bad)} of {len(files) + len(bad)} images can't be used ({some}"
            f"{'; …' if len(bad) > 3 else ''}): remove, repair or convert them, or give another folder"
        )
    return Verdict(files, skipped)


def identity_of(verdict: Verdict, *, kind: str = "folder") -> dict[str, object]:
    """What distinguishes one folder of images from another, or shards: the used names and their sizes, not their place.

    Example:
        >>> identity_of(Verdict((("a.png", 80),), ()))["count"]
        1
    """
    digest, count = hashlib.sha256(), 0
    for name, size in verdict.files:
        images = verdict.read_by.get(name, ("", 1))[1]
        digest.update(os.fsencode(name) + b"\0%d\0" % size + (b"%d images\0" % images if images > 1 else b""))
        count += images
    deep = {"dtype": verdict.dtype} if verdict.dtype != "uint8" else {}  # earlier folders have no such key
    return {"kind": kind, "count": count, "sha256": digest.hexdigest(), **deep}


def save_verdict(path: Path, verdict: Verdict) -> None:
    """Writes a verdict; the file appears whole or not at all.

    Raises:
        DataError: it can't be written.
    """
    shape = {} if verdict.shape is None else {"shape": verdict.shape}
    deep = {} if verdict.dtype == "uint8" else {"dtype": verdict.dtype, "is_grey": verdict.is_grey}
    others = {"read_by": dict(verdict.read_by)} if verdict.read_by else {}  # of pictures alone the file is what it was
    others |= {} if verdict.blocks is None else {"blocks": verdict.blocks._asdict()}
    kind = _FORMAT_READ_BY if verdict.read_by else _FORMAT
    text = json.dumps({"format": kind, "files": verdict.files, "skipped": verdict.skipped, **shape, **deep, **others})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode("ascii"))
    except OSError as error:
        raise DataError(f"{path}: the verdict on the images can't be written ({error.strerror})") from error


def _pairs(value: object, kinds: tuple[type, type]) -> tuple:
    if not isinstance(value, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], kinds[0]) and isinstance(pair[1], kinds[1])
        for pair in value
    ):
        raise ValueError("not a list of pairs")
    return tuple((first, second) for first, second in value)


def _read_by(value: object) -> dict[str, tuple[str, int]]:
    if not isinstance(value, dict) or not all(
        isinstance(pair, list) and len(pair) == 2 and pair[0] in READERS and type(pair[1]) is int and pair[1] > 0
        for pair in value.values()
    ):
        raise ValueError("not readers and numbers of images")
    return {name: (reader, count) for name, (reader, count) in value.items()}


def _blocks(value: object, count: int) -> Blocks:
    """Raises ValueError where they aren't those of so many images, KeyError or TypeError where they are none."""
    blocks = Blocks(tuple(value["images"]), value["pool"])  # pyright: ignore[reportIndexIssue]
    if not all(type(one) is int and one > 0 for one in (*blocks.images, blocks.pool)) or sum(blocks.images) != count:
        raise ValueError("no blocks of these images")
    return blocks


def _unlisted(folder: object, name: str) -> str | int:
    """The size of what isn't listed today, or why it can't be had: in shards what isn't listed isn't there."""
    return _reason_or_size(folder / name) if isinstance(folder, Path) else "no longer there"


def load_verdict(path: Path, listing: Listing, *, folder: object) -> Verdict:
    """The verdict of an earlier start, for the folder that it was made of.

    Its list is used as it is, in the dtype and in the blocks that it says; one without a dtype is of a version that had
    8 bits alone. Files that are gone by now are replaced when they are met, new ones are left out. Files that
    `list_images` passes over today, and didn't in an earlier version, are used.

    Raises:
        DataError: the file is damaged, more than half of its images aren't in the folder, or some have another size in
            bytes: they are other images.
    """
    try:
        content = json.loads(path.read_bytes())
        if content["format"] not in (_FORMAT, _FORMAT_READ_BY):
            raise ValueError("another format")
        shape = _pairs([content["shape"]], (int, int))[0] if "shape" in content else None
        dtype, is_grey = content.get("dtype", "uint8"), content.get("is_grey", False)
        if dtype not in ("uint8", "uint16", "float32") or not isinstance(is_grey, bool):
            raise ValueError("another dtype")
        files, skipped = _pairs(content["files"], (str, int)), _pairs(content["skipped"], (str, str))
        blocks = _blocks(content["blocks"], len(files)) if "blocks" in content else None
        verdict = Verdict(files, skipped, shape, dtype, is_grey, _read_by(content.get("read_by", {})), blocks)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: this list of usable images can't be read: delete it, and it is made again") from error
    listed = dict(listing.files)
    now = {name: listed[name] if name in listed else _unlisted(folder, name) for name, _ in verdict.files}
    kept = [name for name, size in now.items() if isinstance(size, int)]
    if 2 * len(kept) < len(verdict.files) or not kept:
        raise DataError(
            f"{folder}: holds only {len(kept)} of the {len(verdict.files)} images that {path} lists: "
            f"give the folder that the run was started with, or delete that file"
        )
    changed = [(name, then) for name, then in verdict.files if isinstance(now[name], int) and now[name] != then]
    if changed:
        name, then = changed[0]
        raise DataError(
            f"{folder}: {len(changed)} of the {len(verdict.files)} images that {path} lists have another size than at"
            f" the first start (the first: {name!r}, {then} bytes then, {now[name]} now): put back the images that the"
            " run was started with, or start a new run"
        )
    return verdict
