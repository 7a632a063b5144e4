"""What a pickle of torch.save says, as plain data: of a tensor, where its numbers lie; of an object, its class's name.

torch is never asked, nor is any other library, so a file can run nothing of them, nor anything that a program allowed
torch to build: an `argparse.Namespace`, an enum or a path beside the weights is an `Object` here, which holds nothing.
And nothing becomes larger than the pickle itself: torch.load would make ten gigabytes of a `bytearray` with a length of
ten digits. Names that no honest checkpoint has, those of functions that run programs, are refused all the same: the
next reader of the file may be another one.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from interop.arrays import DTYPE_NAMES
from interop.formats.pickle_machine import Meaning, Name, called_name, is_size, is_word, name_refusal

__all__ = ["Object", "Storage", "Tensor", "meaning_for"]

STORAGES = {
    "Untyped": "uint8",
    "Byte": "uint8",
    "Char": "int8",
    "Bool": "bool",
    "Short": "int16",
    "Int": "int32",
    "Long": "int64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Float": "float32",
    "Double": "float64",
    "ComplexFloat": "complex64",
    "ComplexDouble": "complex128",
}
"""torch.FloatStorage and its sisters."""

UNREAD_STORAGES = {"QInt8": "int8", "QUInt8": "uint8", "QInt32": "int32", "QUInt4x2": "uint8", "QUInt2x4": "uint8"}
UNREAD_STORAGES |= {"ComplexHalf": "float32"}
"""Those of numbers that aren't read, by a type of their size."""

DTYPES = {"half": "float16", "float": "float32", "double": "float64", "short": "int16", "int": "int32", "long": "int64"}
DTYPES |= {name: name for name in DTYPE_NAMES}

PARTS = re.compile(
    r"collections (OrderedDict|defaultdict|Counter)|(builtins|__builtin__) (set|bytearray|complex|dict|list|int|float)"
    r"|_codecs encode|torch\._utils _rebuild_(tensor|tensor_v[23]|parameter|parameter_with_state)"
    r"|torch\._tensor _rebuild_from_type_v2|torch\.nn\.parameter Parameter|torch\.serialization _get_layout"
    r"|torch(\.storage)? [A-Za-z0-9]*Storage|torch (Tensor|Size|device)"
    r"|torch (bool|u?int\d+|float\d+|bfloat16|float8_\w+|complex\d+|half|float|double|long|int|short)"
)
"""The names that mean something here, those of dense tensors, numbers, text, lists and dicts; any other is an object's.
"""

NOT_DENSE = re.compile(r"torch\._utils _rebuild_(\w*(tensor|subclass)\w*)")

RUNNERS = {"os", "posix", "nt", "subprocess", "sys", "pty", "socket", "shutil", "runpy", "importlib", "imp", "ctypes"}
RUNNERS |= {"code", "codeop", "pickle", "_pickle", "cPickle", "marshal", "webbrowser", "pdb", "bdb", "timeit", "pip"}
RUNNING = {"eval", "exec", "execfile", "compile", "__import__", "open", "input", "breakpoint", "apply", "globals"}
BUILTINS = ("builtins", "__builtin__")


def runs_programs(text: str) -> bool:
    """Whether a name is one of those that a harmful pickle calls, so that its file is refused whatever else it holds.

    Nothing here depends on this: no name is ever called.

    Example:
        >>> runs_programs("posix system"), runs_programs("builtins getattr"), runs_programs("argparse Namespace")
        (True, False, False)
    """
    module, _, name = text.partition(" ")
    if module in RUNNERS or module.startswith(("importlib.", "ctypes.")):
        return True
    return module in BUILTINS and name.partition(".")[0] in RUNNING


class Storage(NamedTuple):
    """Numbers one after another, somewhere else in the file."""

    key: str
    dtype: str
    count: int
    begin: int = 0
    """In elements; old files have views of storages."""
    is_read: bool = True
    """Whether its numbers are of a type that is read; `dtype` has their size in any case."""


class Tensor(NamedTuple):
    """A dense, strided tensor: which of a storage's numbers, in which order."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    conjugate: bool = False
    negative: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def reach(self) -> int:
        """How many of the storage's numbers lie from the tensor's first to its last."""
        return 1 + sum((side - 1) * stride for side, stride in zip(self.shape, self.strides, strict=True))

    @property
    def is_contiguous(self) -> bool:
        expected = 1
        for side, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if side != 1 and stride != expected:
                return False
            expected *= side
        return True


class Object:
    """Something beside the weights, of which only the class's or the function's name is known; nobody reads it.

    Two of them are never equal, so that each can be a key of its own.
    """

    __slots__ = ("is_tensor", "text")

    def __init__(self, text: str, *, is_tensor: bool = False) -> None:
        self.text, self.is_tensor = text, is_tensor

    def __repr__(self) -> str:
        return self.in_words

    @property
    def in_words(self) -> str:
        """Its dotted name, or what kind of tensor it is."""
        words = self.text.replace(" ", ".")[:200]
        return f"a {words}, only dense tensors can be read" if self.is_tensor else words


def meaning_for(where: str, storages: dict[str, Storage]) -> Meaning:
    """What the names, calls, states and storages of one file mean; each storage is put into `storages` by its key.

    Raises (when the machine meets it):
        UnsafeCheckpointError: a name of `runs_programs`, or a call of what is neither a name nor an object.
    """

    def name(text: str) -> Name:
        if runs_programs(text):
            raise name_refusal(text, where=where, advice="don't load it with anything else")
        return Name(text)

    def call(target: Any, arguments: Any) -> Any:
        if isinstance(target, Object):  # what getattr found in a class, or a partial function
            return Object(target.text)
        return _result(called_name(target, arguments, where=where), arguments)

    def storage(identity: Any) -> Any:
        if isinstance(identity, tuple) and len(identity) == 4 and identity[0] == "module":
            return identity[1]  # in old files, a module's class beside its source, which nobody reads
        found = _storage(identity)
        return storages.setdefault(found.key, found._replace(begin=0))._replace(begin=found.begin)

    return Meaning(name, call, _accept_state, storage, _key, Object, lambda thing: isinstance(thing, Object))


def _result(text: str, arguments: tuple[Any, ...]) -> Any:
    """What stands for a call's result, never larger than what the program itself wrote down: nothing is copied,
    joined or repeated."""
    if not PARTS.fullmatch(text):
        kind = NOT_DENSE.fullmatch(text)
        return Object(kind[1], is_tensor=True) if kind else Object(text)
    match text.rpartition(" ")[2]:
        case "_rebuild_tensor" | "_rebuild_tensor_v2":
            return _tensor(*arguments[:4], metadata=arguments[6] if len(arguments) > 6 else None)
        case "_rebuild_tensor_v3":
            return _tensor(*arguments[:4], named=arguments[6], metadata=arguments[7] if len(arguments) > 7 else None)
        case "_rebuild_parameter" | "_rebuild_parameter_with_state" | "Parameter":
            return arguments[0]
        case "_rebuild_from_type_v2":
            function, kind, inner, _ = arguments
            if not isinstance(function, Name) or not isinstance(kind, Name):
                raise ValueError("a tensor that isn't made by torch")
            plain = PARTS.fullmatch(kind.text) and function.text.startswith("torch._utils ")
            return _result(function.text, inner) if plain else Object(kind.text)
        case "OrderedDict" | "defaultdict" | "dict" if not any(isinstance(one, list | dict) for one in arguments):
            return {}
        case "Counter":
            return arguments[0] if arguments and isinstance(arguments[0], dict) else {}
        case "Size":
            return arguments[0]
    return Object(text)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *, named: Any = None, metadata: Any = None) -> Any:
    """A tensor, or of a type that isn't read what stands for one."""
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    if not all(is_size(number) for number in (offset, *shape, *strides)) or len(shape) != len(strides):
        raise ValueError("a tensor of impossible shape or strides")  # not shown: a nest of lists could print for ever
    kind = named.text.removeprefix("torch ") if isinstance(named, Name) else None
    if not storage.is_read or (kind is not None and kind not in DTYPES):
        return Object("tensor of a type that isn't known", is_tensor=True)
    if named is not None and kind is None:
        raise ValueError("a tensor of no type")
    dtype = storage.dtype if kind is None else DTYPES[kind]
    marks = metadata if isinstance(metadata, Mapping) else {}
    return Tensor(
        storage, offset, tuple(shape), tuple(strides), dtype, marks.get("conj") is True, marks.get("neg") is True
    )


def _storage(identity: Any) -> Storage:
    """A persistent id: ("storage", class, key, device, count), in old files with a view (key, begin, count)."""
    _, named, key, _, count, *view = identity
    known = isinstance(named, Name) and PARTS.fullmatch(named.text)
    kind = named.text.rpartition(" ")[2].removesuffix("Storage") if known else None
    known_kinds = STORAGES | UNREAD_STORAGES
    if identity[0] != "storage" or kind not in known_kinds or not is_size(count) or not is_word(key):
        raise ValueError(f"a storage of unknown kind {kind}")
    begin = view[0][1] if view and view[0] else 0
    if not is_size(begin):
        raise ValueError("a view of a storage that begins nowhere")
    return Storage(str(key), known_kinds[kind], count, begin, kind in STORAGES)


def _accept_state(target: Any, state: Any) -> None:
    """A state dict's metadata and the attributes of a parameter or an object are dropped; nothing else has a state."""
    if not isinstance(target, dict | Tensor | Object):
        raise ValueError(f"the state of a {type(target).__name__}")


def _key(key: Any) -> Any:
    """A dict's key, as it is where it is flat (hashing nested tuples could exhaust the C stack), else a stand-in."""
    flat = str | int | float | bytes | None | Name | Object
    if isinstance(key, flat) or (isinstance(key, tuple) and all(isinstance(part, flat) for part in key)):
        return key
    return Object(type(key).__name__)
