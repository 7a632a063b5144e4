"""Structured damage for weight files: what a byte flipped at random hardly ever does behind lengths and check sums.

Each function takes `choose`, and `choose(n)` is a number from 0 to n - 1: hypothesis' or a seeded generator's.
"""

import io
import json
import pickletools
import struct
import zipfile
from collections.abc import Callable

from hostile_files import damage

Choose = Callable[[int], int]

NUMBERS = (0, 1, 2, 3, 7, 8, 40, 255, 256, 65535, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 62)
NUMBERS += (1 << 63, (1 << 64) - 1, 10**30, -1, -8)
TEXTS = (
    "",
    "a",
    "x/y",
    "../x",
    "/etc/passwd",
    "..",
    "\0",
    "\n",
    "\x1b[2J",
    "é",
    "F32",
    "U8",
    "__metadata__",
    "weight_map",
)
TEXTS += (
    "model.safetensors",
    "model-00002-of-00002.safetensors",
    "state_dict",
    "module.w",
    "n_averaged",
    "online_params",
)
ODD: tuple = (*NUMBERS, *TEXTS, None, True, 0.5, 1e400, [], {}, [[]], [0, 0], {"a": []})


def one_of(choose: Choose, items):
    return items[choose(len(items))]


def splice(one: bytes, other: bytes, choose: Choose) -> bytes:
    """The beginning of one file and the end of another."""
    return one[: choose(len(one) + 1)] + other[choose(len(other) + 1) :]


def edit_json(text: str, choose: Choose) -> str:
    """JSON with a few values, names or brackets exchanged; sometimes a name twice."""
    content = json.loads(text)
    for _ in range(1 + choose(2)):
        content = edit_tree(content, choose)
    written = json.dumps(content, ensure_ascii=bool(choose(2)))
    if choose(6) == 0 and written.startswith("{") and len(written) > 2:
        written = written[:-1] + "," + written[1:]  # all names twice
    return written


def edit_tree(content, choose: Choose):
    if isinstance(content, dict) and content and choose(5):
        name = one_of(choose, list(content))
        value = content[name]
        changes = (
            lambda: {**content, name: edit_tree(value, choose)},
            lambda: {other: content[other] for other in content if other != name},
            lambda: {(one_of(choose, TEXTS) if other == name else other): content[other] for other in content},
            lambda: {**content, name: content[one_of(choose, list(content))]},
            lambda: {**content, one_of(choose, TEXTS): value},
        )
        return changes[max(0, choose(8) - 3)]()
    if isinstance(content, list) and content and choose(4):
        at = choose(len(content))
        return [*content[:at], edit_tree(content[at], choose), *content[at + 1 + choose(2) :]]
    if type(content) is int and choose(2):
        return content + one_of(choose, (-8, -4, -1, 1, 4, 8))
    return one_of(choose, ODD)


def edit_safetensors(content: bytes, choose: Choose) -> bytes:
    """Another header, its length right; sometimes a length that isn't, or other bytes behind it."""
    length = int.from_bytes(content[:8], "little")
    header, rest = (
        edit_json(content[8 : 8 + length].decode(), choose).encode("utf-8", "surrogatepass"),
        content[8 + length :],
    )
    stated = len(header) if choose(8) else one_of(choose, NUMBERS) % (1 << 64)
    rest = damage(rest, choose) if choose(4) == 0 else rest
    return struct.pack("<Q", stated) + header + rest


DIRECTORY, LOCAL, END = b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"
FIELDS = {
    DIRECTORY: {4: 2, 6: 2, 8: 2, 10: 2, 16: 4, 20: 4, 24: 4, 28: 2, 30: 2, 32: 2, 34: 2, 42: 4},
    LOCAL: {4: 2, 6: 2, 8: 2, 14: 4, 18: 4, 22: 4, 26: 2, 28: 2},
    END: {4: 2, 6: 2, 8: 2, 10: 2, 12: 4, 16: 4, 20: 2},
}
"""Offsets and widths of the numbers in a zip archive's records (APPNOTE 4.3)."""


def edit_records(content: bytes, choose: Choose) -> bytes:
    """A number in a zip archive's directory, local headers or end record exchanged."""
    signature = one_of(choose, list(FIELDS))
    places = [at for at in range(len(content)) if content.startswith(signature, at)] if signature in content else []
    if not places:
        return damage(content, choose)
    at, offset = one_of(choose, places), one_of(choose, list(FIELDS[signature]))
    width = FIELDS[signature][offset]
    old = int.from_bytes(content[at + offset : at + offset + width], "little")
    new = one_of(choose, (*NUMBERS, old + 1, old - 1, old * 2, len(content), old + 64)) % (1 << 8 * width)
    return content[: at + offset] + new.to_bytes(width, "little") + content[at + offset + width :]


def edit_members(content: bytes, choose: Choose, edit: Callable[[str, bytes, Choose], bytes]) -> bytes:
    """An archive written anew, right check sums and all, with members edited, renamed, left out, doubled or packed."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    at = choose(len(members))
    name, data = members[at]
    changes = (
        lambda: [(name, edit(name, data, choose))],
        list,
        lambda: [(one_of(choose, (*TEXTS, "x/data.pkl", "b.npy", name + "/", name[1:])) or "_", data)],
        lambda: [(name, data), (name, edit(name, data, choose))],
        lambda: [(name, members[choose(len(members))][1])],
    )
    new = [*members[:at], *changes[max(0, choose(9) - 4)](), *members[at + 1 :]]
    buffer = io.BytesIO()
    packed = zipfile.ZIP_DEFLATED if choose(6) == 0 else zipfile.ZIP_STORED
    with zipfile.ZipFile(buffer, "w") as archive:
        for member, text in new:
            archive.writestr(zipfile.ZipInfo(member.replace("\0", "0")), text, compress_type=packed)
    return buffer.getvalue()


def edit_npy(name: str, content: bytes, choose: Choose) -> bytes:
    """An array's header with a word exchanged and its length right, or the array's bytes damaged."""
    if not content.startswith(b"\x93NUMPY\x01") or choose(4) == 0:
        return damage(content, choose)
    length = int.from_bytes(content[8:10], "little")
    header, data = content[10 : 10 + length].decode("latin1"), content[10 + length :]
    old = one_of(choose, ("<f4", "<f2", "<i8", "|V2", "False", "(", ")", ",", "'", "4", "3", "shape", "descr"))
    new = one_of(
        choose, ("|O", ">f4", "<f8", "|V1", "True", "((", "", "-1", str(1 << 60), "9" * 50, "None", "<M8[s]", "|S4")
    )
    text = header.replace(old, new, 1 + choose(2)).encode("latin1")[:65535]
    return content[:8] + struct.pack("<H", len(text)) + text + data


GLOBALS = ("os\nsystem", "builtins\neval", "__builtin__\nbytearray", "collections\nOrderedDict", "torch\nTensor")
GLOBALS += ("torch._utils\n_rebuild_tensor_v2", "torch\nFloatStorage", "torch.storage\nUntypedStorage", "torch\nSize")
GLOBALS += (
    "numpy._core.multiarray\n_reconstruct",
    "numpy\nndarray",
    "numpy\ndtype",
    "_codecs\nencode",
    "dill._dill\n_create_array",
)
GLOBALS += ("argparse\nNamespace", "pathlib\nPosixPath", "builtins\ngetattr", "functools\npartial", "a.b\nC.d")
GLOBALS += ("numpy._core.multiarray\nscalar", "dill._dill\n_create_namedtuple", "torch._utils\n_rebuild_sparse_tensor")
OPERATIONS = [
    *(code.encode() for code in "(t)}]sueaRbQ\x810N\x88.21lod"),
    *(bytes([code]) for code in (0x8F, 0x90, 0x91, 0x92)),
    b"\x85",
    b"\x86",
    b"\x87",
    b"\x93",
    b"\x94",
    b"\x8f",
]
OPERATIONS += [f"c{name}\n".encode() for name in GLOBALS] + [f"i{name}\n".encode() for name in GLOBALS[:2]]
OPERATIONS += [b"h\0", b"h\1", b"q\0", b"j\xff\xff\xff\xff", b"K\xff", b"J\xff\xff\xff\xff", b"J\0\0\0\x40", b"L9\n"]
OPERATIONS += [
    b"\x8a\x08" + b"\xff" * 7 + b"\x7f",
    b"X\xff\xff\xff\xff",
    b"\x8d" + b"\xff" * 7 + b"\x1f",
    b"]" * 200,
    b"(" * 200,
]
OPERATIONS += [
    b"X\x01\x00\x00\x00a",
    b"X\x0a\x00\x00\x00state_dict",
    b"X\x07\x00\x00\x00storage",
    b"G" + b"\x7f\xf0" + bytes(6),
]


def edit_pickle(content: bytes, choose: Choose) -> bytes:
    """A pickle with instructions left out, doubled, exchanged, put in or damaged; what follows it stays."""
    try:
        places = [place for _, _, place in pickletools.genops(content) if place is not None]
    except ValueError:
        return damage(content, choose)
    end = content.index(b".", places[-1]) + 1
    steps = [content[start:stop] for start, stop in zip(places, [*places[1:], end], strict=True)]
    for _ in range(1 + choose(3)):
        if not steps:
            break
        at, other = choose(len(steps)), choose(len(steps))
        kind = choose(6)
        if kind == 0:
            del steps[at]
        elif kind == 1:
            steps.insert(at, steps[other])
        elif kind == 2:
            steps[at], steps[other] = steps[other], steps[at]
        elif kind == 3:
            steps.insert(at, one_of(choose, OPERATIONS))
        elif kind == 4:
            steps[at] = one_of(choose, OPERATIONS)
        else:
            steps[at] = steps[at][:1] + damage(steps[at][1:], choose)
    return b"".join(steps) + content[end:]


def edit_torch_member(name: str, content: bytes, choose: Choose) -> bytes:
    return edit_pickle(content, choose) if name.endswith(".pkl") else damage(content, choose)


def edit_legacy(content: bytes, choose: Choose) -> bytes:
    """One of the five pickles at the front of an old torch file edited."""
    start = 0
    for _ in range(choose(5)):
        for operation, _, place in pickletools.genops(content[start:]):
            if operation.name == "STOP":
                start += place + 1
    return content[:start] + edit_pickle(content[start:], choose)
