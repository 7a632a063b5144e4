"""Files that mean harm, each made here. `hostile_files(folder, sentinel)` gives name and content of each kind.

Whoever runs the code in one of them creates the file `sentinel`.
"""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable

import numpy as np

LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
"""torch.serialization.MAGIC_NUMBER."""


def safetensors(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, stop: int, *, shape: object = None, dtype: str = "U8") -> dict:
    return {"dtype": dtype, "shape": [stop - start] if shape is None else shape, "data_offsets": [start, stop]}


def zip_of(members: list[tuple[str, bytes]], *, method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)
    return buffer.getvalue()


def npy(array: np.ndarray, *, allow_pickle: bool = False) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=allow_pickle)
    return buffer.getvalue()


def npy_with_header(header: str, data: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + data


class Bomb:
    """Unpickling it runs a shell command."""

    def __init__(self, sentinel: str):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.system, (f"touch {self.sentinel}",)


def zip_bomb(size: int) -> bytes:
    """`size` bytes of zeros in a thousandth of the room."""
    buffer = io.BytesIO()
    member = zipfile.ZipInfo("a.npy")
    member.compress_type = zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(buffer, "w", compresslevel=1) as archive, archive.open(member, "w") as stream:
        stream.write(npy_with_header(f"{{'descr':'|u1','fortran_order':False,'shape':({size},)}}"))
        for _ in range(size >> 20):
            stream.write(bytes(1 << 20))
    return buffer.getvalue()


def overlapping_members() -> bytes:
    """Two directory entries that point at one member: the trick of zip bombs without recursion."""
    content = zip_of([("a.npy", npy(np.zeros(100))), ("b.npy", npy(np.zeros(100)))])
    first, second = content.find(b"PK\x01\x02"), content.rfind(b"PK\x01\x02")
    return content[: second + 42] + content[first + 42 : first + 46] + content[second + 46 :]


def lying_size() -> bytes:
    """A member that states fewer bytes than it unpacks to."""
    content = bytearray(zip_of([("a.npy", npy(np.zeros(100_000)))], method=zipfile.ZIP_DEFLATED))
    directory = content.rfind(b"PK\x01\x02")
    content[directory + 24 : directory + 28] = struct.pack("<I", 128 + 8)
    return bytes(content)


def torch_zip(program: bytes, *more: tuple[str, bytes]) -> bytes:
    return zip_of([("x/data.pkl", program), ("x/version", b"3\n"), ("x/byteorder", b"little"), *more])


def torch_legacy(program: bytes, *, keys: list | None = None, data: bytes = b"") -> bytes:
    return LEGACY_MAGIC + pickle.dumps(1001, 2) + pickle.dumps({}, 2) + program + pickle.dumps(keys or [], 2) + data


def torch_tensor(shape: bytes, *, count: int = 1, kind: bytes = b"storage", before: bytes = b"") -> bytes:
    """A pickle of `{"b": …, "state_dict": {"a": tensor}}`; `shape` and strides are the same instruction."""
    storage = b"(X\x07\0\0\0%bctorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu\x8a\x08%bNtQ" % (
        kind,
        count.to_bytes(8, "little"),
    )
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\0" + shape + shape + b"\x89NtR"
    return b"\x80\x02}X\x01\0\0\0b(" + before + b"tsX\x0a\0\0\0state_dict}X\x01\0\0\0a" + tensor + b"ss."


def nest(depth: int = 60) -> bytes:
    """Instructions that make a list of two lists of two lists, the last under number `depth`; shown, it is endless."""
    return b"]q\0" + b"".join(b"](h%ch%ceq%c" % (level - 1, level - 1, level) for level in range(1, depth + 1))


def hostile_files(sentinel: str) -> dict[str, bytes]:
    """Name to content; none needs torch to be made."""
    bomb = pickle.dumps({"a": Bomb(sentinel)}, protocol=2)
    zeros = npy(np.zeros(1))
    twice = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    bomb_array = npy(np.array([Bomb(sentinel)], dtype=object), allow_pickle=True)
    nested = b"[" * 100_000
    many = {"x": entry(0, 8, shape=[2**62, 2**62, 0])}
    return {
        "empty.safetensors": b"",
        "code.pt": torch_zip(bomb),
        "code-protocol-4.pt": torch_zip(pickle.dumps({"a": Bomb(sentinel)}, protocol=4)),
        "code-legacy.pt": torch_legacy(bomb),
        "code-plain.pt": bomb,
        "code-plain-protocol-5.pkl": pickle.dumps({"a": Bomb(sentinel)}, protocol=5),
        "code-inst.pt": torch_zip(f"(S'touch {sentinel}'\nios\nsystem\n.".encode()),
        "torchscript.pt": torch_zip(pickle.dumps({}, 2), ("x/constants.pkl", bomb), ("x/code/__torch__.py", b"x")),
        "archive.pt2": zip_of([("x/archive_format", b"pt2"), ("x/models/model.json", b"{}"), ("x/data.pkl", b"")]),
        "path.pt": torch_zip(pickle.dumps({}, 2), ("../../data/0", b"1234")),
        "two-pickles.pt": torch_zip(pickle.dumps({}, 2), ("x/data.pk0", bomb)).replace(b"data.pk0", b"data.pkl"),
        "bytearray-of-a-gigabyte.pt": torch_zip(b"\x80\x02}X\x01\0\0\0ac__builtin__\nbytearray\nJ\0\0\0\x40\x85Rs."),
        "endless-shape.pt": torch_zip(torch_tensor(b"h<", before=nest()), ("x/data/0", b"1234")),
        "endless-shape-legacy.pt": torch_legacy(torch_tensor(b"h<", before=nest())),
        "module-source.pt": torch_legacy(torch_tensor(b"K\1\x85", kind=b"module\0")),
        "storage-of-terabytes.pt": torch_legacy(torch_tensor(b"K\1\x85", count=1 << 40), keys=["0"], data=bytes(12)),
        "tensor-of-terabytes.pt": torch_legacy(torch_tensor(b"J\xff\xff\xff\x7f\x85", count=1 << 40), keys=["0"]),
        "absent-storage.pt": torch_zip(torch_tensor(b"K\1\x85")),
        "short-storage.pt": torch_zip(torch_tensor(b"K\2\x85", count=2), ("x/data/0", b"1234")),
        "no-pickle.zip": zip_of([("word/document.xml", b"<x/>")]),
        "bomb.npz": zip_bomb(257 << 20),
        "lying-size.npz": lying_size(),
        "overlapping.npz": overlapping_members(),
        "parent.npz": zip_of([("../a.npy", zeros)]),
        "absolute.npz": zip_of([("/tmp/a.npy", zeros)]),
        "backslash.npz": zip_of([("..\\a.npy", zeros)]),
        "twice.npz": zip_of([("a.npy", zeros), ("b.npy", zeros)]).replace(b"b.npy", b"a.npy"),
        "lzma.npz": zip_of([("a.npy", zeros)], method=zipfile.ZIP_LZMA),
        "objects.npz": zip_of([("a.npy", bomb_array)]),
        "text.npz": zip_of([("a.npy", npy(np.array(["x"])))]),
        "structured.npz": zip_of([("a.npy", npy(np.zeros(1, dtype="f4,f4")))]),
        "negative.npz": zip_of(
            [("a.npy", npy_with_header("{'descr':'<f4','fortran_order':False,'shape':(-1,-4)}", b"1" * 16))]
        ),
        "huge-shape.npz": zip_of(
            [("a.npy", npy_with_header(f"{{'descr':'<f4','fortran_order':False,'shape':({2**60},)}}"))]
        ),
        "no-literal.npz": zip_of([("a.npy", npy_with_header("{'descr':__import__('os').system('true'),'shape':()}"))]),
        "deep-header.npz": zip_of([("a.npy", npy_with_header("(" * 9000))]),
        "huge-header.safetensors": safetensors({}, length=2**63),
        "header-beyond-the-end.safetensors": safetensors({}, length=1000),
        "header-not-json.safetensors": safetensors(b"{'a': 1}"),
        "header-a-list.safetensors": safetensors(b"{}]"),
        "header-deep.safetensors": safetensors(b'{"a":' + nested),
        "header-long-number.safetensors": safetensors(b'{"a":' + b"9" * 100_000 + b"}"),
        "header-not-text.safetensors": safetensors(b'{"\xff\xfe": 1}'),
        "twice.safetensors": safetensors(twice, b"1"),
        "overlap.safetensors": safetensors({"a": entry(0, 4), "b": entry(2, 6)}, b"123456"),
        "same-bytes.safetensors": safetensors({"a": entry(0, 4), "b": entry(0, 4)}, b"1234"),
        "hole.safetensors": safetensors({"a": entry(0, 2), "b": entry(4, 6)}, b"123456"),
        "tail.safetensors": safetensors({"a": entry(0, 2)}, b"123456"),
        "out-of-range.safetensors": safetensors({"a": entry(0, 1000)}, b"1234"),
        "backwards.safetensors": safetensors({"a": entry(4, 0, shape=[])}, b"1234"),
        "negative-offset.safetensors": safetensors({"a": entry(-4, 0, shape=[4])}, b"1234"),
        "negative-shape.safetensors": safetensors({"a": entry(0, 4, shape=[-2, -2])}, b"1234"),
        "overflowing-shape.safetensors": safetensors(many, b"12345678"),
        "shape-too-large.safetensors": safetensors({"a": entry(0, 4, shape=[2**40])}, b"1234"),
        "fractional.safetensors": safetensors({"a": {"dtype": "U8", "shape": [1.0], "data_offsets": [0, 1]}}, b"1"),
        "unknown-type.safetensors": safetensors({"a": entry(0, 4, dtype="OBJECT")}, b"1234"),
        "extra-field.safetensors": safetensors({"a": entry(0, 4) | {"code": "x"}}, b"1234"),
        "no-dict.safetensors": safetensors({"a": [1, 2]}),
        "metadata.safetensors": safetensors({"__metadata__": {"a": {"b": 1}}}),
        "array.npy": zeros,
        "page.safetensors": b"<!DOCTYPE html><html>",
        "lfs.pt": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "random.pt": bytes(range(256)),
        "zeros.pt": bytes(1000),
        "short.pt": b"P",
    }


def damage(content: bytes, choose: Callable[[int], int]) -> bytes:
    """One to three random changes: bytes flipped, cut out, doubled, zeroed or made huge; the file cut short.

    Args:
        choose: `choose(n)` is a number from 0 to n - 1.
    """
    for _ in range(1 + choose(3)):
        if not content:
            return content
        at = choose(len(content))
        length = 1 + choose(9)
        before, middle, after = content[:at], content[at : at + length], content[at + length :]
        changes = (
            before + bytes([middle[0] ^ (1 << choose(8))]) + middle[1:] + after,
            before + after,
            before + middle + middle + after,
            before + bytes(length) + after,
            before + b"\xff" * length + after,
            before,
        )
        content = changes[choose(len(changes))]
    return content
