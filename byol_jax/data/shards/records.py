"""Files of records, TFRecord and ArrayRecord: each record an encoded image, or a tf.train.Example with one in it.

TFRecord has no index, but its framing is plain: length, check sum of the length, data, check sum of the data. A walk
along the lengths gives every record's place, once; from then on each is read where it lies, and its check sum looked
at. (grain reads such files from their start, and looks at no check sum.) ArrayRecord has an index of its own, which
grain reads.

An Example's image is its one entry of bytes that begins as an image does ("image/encoded" or "image" of several); its
label is the whole number in "label" or "image/class/label". A record's name is its file's and its number,
"train.tfrecord-00000-of-00008#000000017".
"""

import functools
import io
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from byol_jax.data.files.encoded import EncodedImages
from byol_jax.data.files.file_list import Listing, files_of
from byol_jax.data.files.kept_list import KeptList
from byol_jax.data.shards.find import Shard, Shards, check_lost, open_slice, row_name
from byol_jax.data.unusable import UnusableImageError
from byol_jax.errors import DataError, MissingDependencyError, one_line

__all__ = ["record_images"]

IMAGES = ("image/encoded", "image")
LABELS = ("label", "image/class/label")
"""Entries of an Example as TFDS and TensorFlow's scripts for ImageNet name them."""

_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*")
_HEADER, _CHECK_SUM = struct.Struct("<QI"), struct.Struct("<I")


class _File(Protocol):
    """The records of one shard: `sizes` in bytes, and `read(number)`, which raises UnusableImageError.

    `damage` says what is wrong with it, and `lost` how many bytes that costs.
    """

    sizes: list[int]
    damage: str | None
    lost: int

    def read(self, number: int) -> bytes: ...


class _Packages(NamedTuple):
    """What is needed of grain's extra: a function for check sums, the class of sources, and that of Examples."""

    crc32c: Callable[[bytes], int]
    source: Callable[[list[str]], Any]
    example: Any


@functools.cache
def _packages() -> _Packages:
    try:
        import google_crc32c
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
        from grain.sources import ArrayRecordDataSource
    except ImportError as error:
        raise MissingDependencyError(
            'TFRecord and ArrayRecord need grain and google-crc32c, which are absent: pip install "byol-jax[grain]"'
        ) from error
    pool = (
        descriptor_pool.DescriptorPool()
    )  # its own: TensorFlow, where it is installed, has these messages in the common
    pool.Add(_example_file(descriptor_pb2))
    example = message_factory.GetMessageClass(pool.FindMessageTypeByName("byol_jax.Example"))
    return _Packages(google_crc32c.value, ArrayRecordDataSource, example)


def _example_file(descriptor: Any) -> Any:
    """tf.train.Example for protobuf: TensorFlow's example.proto and feature.proto, field numbers and types."""
    field = descriptor.FieldDescriptorProto
    file = descriptor.FileDescriptorProto(name="byol_jax/example.proto", package="byol_jax", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, int, str | None], within: Any = file.message_type) -> Any:
        made = within.add(name=name)
        for one, number, label, kind, type_name in fields:
            made.field.add(name=one, number=number, label=label, type=kind, type_name=type_name)
        return made

    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    message("BytesList", ("value", 1, many, field.TYPE_BYTES, None))
    message("FloatList", ("value", 1, many, field.TYPE_FLOAT, None))
    message("Int64List", ("value", 1, many, field.TYPE_INT64, None))
    lists = (("bytes_list", 1, "BytesList"), ("float_list", 2, "FloatList"), ("int64_list", 3, "Int64List"))
    kinds = [(name, number, one, field.TYPE_MESSAGE, f".byol_jax.{kind}") for name, number, kind in lists]
    feature = message("Feature", *kinds)
    feature.oneof_decl.add(name="kind")
    for kind in feature.field:
        kind.oneof_index = 0
    entry = ".byol_jax.Features.FeatureEntry"
    features = message("Features", ("feature", 1, many, field.TYPE_MESSAGE, entry))
    text, value = (field.TYPE_STRING, None), (field.TYPE_MESSAGE, ".byol_jax.Feature")
    pair = message("FeatureEntry", ("key", 1, one, *text), ("value", 2, one, *value), within=features.nested_type)
    pair.options.map_entry = True
    message("Example", ("features", 1, one, field.TYPE_MESSAGE, ".byol_jax.Features"))
    return file


class _TFRecords:
    """A file of TFRecords, its places found by one walk."""

    def __init__(self, shard: Shard) -> None:
        self._shard, self._offsets, self.sizes = shard, [], []
        self.damage: str | None = None
        self.lost = 0
        try:
            self._walk(shard)
        except Exception as error:  # the disk's, or of whatever file system it is
            self.damage, self.lost = f"can't be read ({one_line(error, at_most=200)})", shard.size - sum(self.sizes)

    def _walk(self, shard: Shard) -> None:
        with shard.open() as file:
            end, position = file.seek(0, io.SEEK_END), 0
            while position < end:
                file.seek(position)
                header = file.read(_HEADER.size)
                length = _length(header)
                if length is None or position + _HEADER.size + length + _CHECK_SUM.size > end:
                    what = "cut short" if length is not None or len(header) < _HEADER.size else "damaged"
                    self.damage = f"{what} at byte {position}: the records from there on are lost"
                    self.lost = end - position
                    return
                self._offsets.append(position + _HEADER.size)
                self.sizes.append(length)
                position += _HEADER.size + length + _CHECK_SUM.size

    def read(self, number: int) -> bytes:
        with open_slice(self._shard, self._offsets[number], self.sizes[number] + _CHECK_SUM.size) as file:
            data, check_sum = file.read(self.sizes[number]), file.read(_CHECK_SUM.size)
        if len(check_sum) < _CHECK_SUM.size or _masked(data) != _CHECK_SUM.unpack(check_sum)[0]:
            raise UnusableImageError("damaged: its check sum is another one")
        return data


def _length(header: bytes) -> int | None:
    """What a header says; None where its check sum says otherwise."""
    if len(header) < _HEADER.size:
        return None
    length, check_sum = _HEADER.unpack(header)
    return length if _masked(header[:8]) == check_sum else None


def _masked(data: bytes) -> int:
    """CRC-32C turned by 15 bits, and a constant added (TensorFlow's crc32c.h)."""
    found = _packages().crc32c(data)
    return ((found >> 15 | found << 17) + 0xA282EAD8) & 0xFFFFFFFF


class _ArrayRecords:
    """A file of ArrayRecord; of a record's size only the mean is known."""

    def __init__(self, shard: Shard) -> None:
        self.damage: str | None = None
        self.lost = 0
        self.sizes: list[int] = []
        try:
            self._source = _packages().source([shard.path])
        except Exception as error:  # of the reader in C++
            self.damage, self.lost = f"no ArrayRecord that can be read ({one_line(error, at_most=200)})", shard.size
        else:
            count = len(self._source)
            self.sizes = [shard.size // max(count, 1)] * count

    def read(self, number: int) -> bytes:
        try:
            return self._source[number]
        except Exception as error:  # of the reader in C++
            raise UnusableImageError(f"can't be read ({one_line(error, at_most=200)})") from error


class _Record(NamedTuple):
    """A record's image. None where there is no such record."""

    file: _File | None
    number: int

    def open(self) -> BinaryIO:
        if self.file is None:
            raise FileNotFoundError
        return io.BytesIO(_image(self.file.read(self.number)))


def _is_image(data: bytes) -> bool:
    return data.startswith(_BEGINNINGS) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


def _features(data: bytes) -> Any:
    """An Example's entries by name."""
    try:
        return _packages().example.FromString(data).features.feature
    except Exception as error:  # of protobuf, whichever of its implementations it is
        raise UnusableImageError("neither an image nor a tf.train.Example") from error


def _image(data: bytes) -> bytes:
    """The encoded image in a record."""
    if _is_image(data):
        return data
    features = _features(data)
    found = {name: one.bytes_list.value[0] for name, one in features.items() if one.bytes_list.value}
    found = {name: value for name, value in found.items() if _is_image(value)}
    named = [name for name in IMAGES if name in found] or list(found)
    if len(named) == 1 or (named and named[0] in IMAGES):
        return found[named[0]]
    some = ", ".join(sorted(features)[:8]) or "none"
    raise UnusableImageError(f"{len(named) or 'no'} entries begin as an image does, of those in its Example: {some}")


def _label(data: bytes) -> int | None:
    if _is_image(data):
        return None
    features = _features(data)
    found = [list(features[name].int64_list.value) for name in LABELS if name in features]
    return found[0][0] if len(found) == 1 and len(found[0]) == 1 else None


class _Records:
    """The records of several files, by name."""

    def __init__(self, place: str, files: dict[str, _File]) -> None:
        self._place, self._files = place, files

    def __str__(self) -> str:
        return self._place

    def __truediv__(self, name: str) -> _Record:
        shard, _, number = name.rpartition("#")
        file = self._files.get(shard)
        is_there = file is not None and number.isdigit() and int(number) < len(file.sizes)
        return _Record(file if is_there else None, int(number) if is_there else 0)

    def listed(self) -> Iterator[tuple[str, int]]:
        for shard, file in self._files.items():
            for number, size in enumerate(file.sizes):
                yield row_name(shard, number), size

    def read_labels(self, kept: KeptList) -> tuple[np.ndarray, None]:
        """The whole number of each Example.

        Raises:
            DataError: a record has none, or can't be read.
        """
        labels = []
        for name in kept.files.names:
            record = self / name
            try:
                label = None if record.file is None else _label(record.file.read(record.number))
            except UnusableImageError:  # damaged since it was looked at
                label = None
            except OSError as error:
                raise DataError(
                    f"{self._place}: the label of {name!r} can't be read ({one_line(error, at_most=200)})"
                ) from error
            if label is None or not 0 <= label < 2**31:
                raise DataError(
                    f"{self._place}: labels are whole numbers of 0 and more in an Example's {' or '.join(LABELS)}, and"
                    f" {name!r} has {'none' if label is None else label}"
                )
            labels.append(label)
        return np.array(labels, np.int32), None


def record_images(
    shards: Shards, *, workers: int = 2, progress: Callable[[int, int], None] | None = None
) -> EncodedImages:
    """The images in files of records, by "shard#number".

    Args:
        shards: of the kind "tfrecord" or "array_record".
        workers: threads. progress: `progress(shards done, shards)`.

    Raises:
        DataError: no record in them, or more than half of them can't be read.
        MissingDependencyError: grain or google-crc32c is absent.
    """
    _packages()
    if shards.kind == "array_record" and shards.files[0].system is not None:
        raise DataError(f"{shards.place}: ArrayRecord is read from a disk alone: copy the files there")
    read = _TFRecords if shards.kind == "tfrecord" else _ArrayRecords
    files: dict[str, _File] = {}
    with ThreadPoolExecutor(workers) as pool:
        for shard, file in zip(shards.files, pool.map(read, shards.files), strict=True):
            files[shard.name] = file
            if progress is not None:
                progress(len(files), len(shards.files))
    records = _Records(shards.place, files)
    damaged = tuple(
        (f"{name}#{len(file.sizes)}", file.damage) for name, file in files.items() if file.damage is not None
    )
    listing = Listing(files_of(records.listed()), damaged, ())
    if not listing.files:
        some = "; ".join(f"{name!r}: {reason}" for name, reason in damaged[:3]) or "they are empty"
        raise DataError(
            f"{shards.place}: no record can be had of {len(files)} {shards.kind} files ({some}): give others"
        )
    check_lost(shards, {name: (file.lost, file.damage) for name, file in files.items() if file.damage is not None})
    return EncodedImages(records, listing, records.read_labels, shards.kind)
