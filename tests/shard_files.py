"""Shards for tests, written by those libraries that users write them with, and the same images as a folder."""

import io
import json
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image


class Picture(NamedTuple):
    """An encoded image, its label, and what to call it."""

    key: str
    data: bytes
    label: int


def pictures(count: int, *, size: tuple[int, int] = (20, 24), classes: int = 3) -> list[Picture]:
    """Colour noise as PNGs, no two alike; keys in order."""
    draws = np.random.default_rng(0).integers(0, 256, (count, *size, 3), np.uint8)
    return [Picture(f"{number:04}", png(pixels), number % classes) for number, pixels in enumerate(draws)]


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def parts(found: list[Picture], number: int) -> list[list[Picture]]:
    """In order, for so many shards."""
    return [found[start : start + -(-len(found) // number)] for start in range(0, len(found), -(-len(found) // number))]


def write_folder(root: Path, found: list[Picture], *, names: str = "{picture.key}.png") -> Path:
    """The images as files, each under the name that the format makes of it."""
    for picture in found:
        path = root / names.format(picture=picture)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture.data)
    return root


def members(found: list[Picture]) -> list[tuple[str, bytes]]:
    """A sample each: image, label, and text that nobody asked for."""
    return [
        member
        for picture in found
        for member in (
            (f"{picture.key}.cls", b"%d" % picture.label),
            (f"{picture.key}.json", b"{}"),
            (f"{picture.key}.png", picture.data),
        )
    ]


def write_tar(path: Path, contents: list[tuple[str, bytes]], *, form: int = tarfile.USTAR_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in contents:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_tars(root: Path, found: list[Picture], number: int = 3) -> Path:
    """A folder with so many shards, shard-000.tar and so on."""
    for index, part in enumerate(parts(found, number)):
        write_tar(root / f"shard-{index:03}.tar", members(part))
    return root


def write_parquet(
    path: Path, found: list[Picture], *, rows: int = 3, image: str = "image", plain: bool = False
) -> Path:
    """One file with row groups of so many rows; the images are structs as Hugging Face datasets has them, or bytes."""
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    images = [one.data if plain else {"bytes": one.data, "path": f"{one.key}.png"} for one in found]
    table = pyarrow.table({"image": images, "label": [one.label for one in found]})
    pyarrow.parquet.write_table(table, path, row_group_size=rows)
    return path


def write_classes(path: Path, found: list[Picture], names: list[str]) -> Path:
    """A Parquet file whose labels have names, as Hugging Face datasets describes them."""
    import pyarrow
    import pyarrow.parquet

    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    table = pyarrow.table({"image": [{"bytes": one.data} for one in found], "label": [one.label for one in found]})
    described = {"huggingface": json.dumps({"info": {"features": features}})}
    pyarrow.parquet.write_table(table.replace_schema_metadata(described), path)
    return path


def write_parquets(root: Path, found: list[Picture], number: int = 2, **options) -> Path:
    """A folder with so many files, named as Hugging Face datasets names a split's."""
    for index, part in enumerate(parts(found, number)):
        write_parquet(root / f"train-{index:05}-of-{number:05}.parquet", part, **options)
    return root


def write_tfrecords(path: Path, records: list[bytes]) -> Path:
    """By TensorBoard's writer, which frames and sums them itself."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        writer = RecordWriter(file)
        for record in records:
            writer.write(record)
        writer.flush()
    return path


def write_array_records(path: Path, records: list[bytes], *, group_size: int = 1) -> Path:
    from array_record.python.array_record_module import ArrayRecordWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = ArrayRecordWriter(str(path), f"group_size:{group_size}")
    for record in records:
        writer.write(record)
    writer.close()
    return path


def example(entries: dict[str, bytes | int | float]) -> bytes:
    """A tf.train.Example with one value an entry, in protobuf's wire format: written here by hand, read by protobuf."""

    def field(number: int, content: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(content)) + content

    def varint(number: int) -> bytes:
        return bytes([number & 127 | 128]) + varint(number >> 7) if number > 127 else bytes([number])

    def feature(value: bytes | int | float) -> bytes:
        if isinstance(value, bytes):
            return field(1, field(1, value))
        if isinstance(value, float):
            return field(2, field(1, np.float32(value).tobytes()))
        return field(3, field(1, varint(value % 2**64)))

    pairs = (field(1, field(1, name.encode()) + field(2, feature(value))) for name, value in entries.items())
    return field(1, b"".join(pairs))
