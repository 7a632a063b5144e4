"""What a pickle of torch.save may name, and the plain data that stands in for it: of a tensor, where its numbers lie.

torch is never asked, so a file can run nothing of it, nor anything that a program allowed torch to build. And nothing
becomes larger than the pickle itself: torch.load would make ten gigabytes of a `bytearray` with a length of ten digits.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from byol_jax.errors import CheckpointFormatError
from interop.arrays import DTYPE_NAMES
from interop.formats.pickle_machine import Meaning, Name, called_name, is_size, is_word, name_refusal

__all__ = ["Storage", "Tensor", "meaning_for"]

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

DTYPES = {"half": "float16", "float": "float32", "double": "float64", "short": "int16", "int": "int32", "long": "int64"}
DTYPES |= {name: name for name in DTYPE_NAMES}

PARTS = re.compile(
    r"collections (OrderedDict|defaultdict|Counter)|(builtins|__builtin__) (set|bytearray|complex|dict|list|int|float)"
    r"|_codecs encode|torch\._utils _rebuild_(tensor|tensor_v[23]|parameter|parameter_with_state)"
    r"|torch\._tensor _rebuild_from_type_v2|torch\.nn\.parameter Parameter|torch\.serialization _get_layout"
    r"|torch(\.storage)? [A-Za-z0-9]*Storage|torch (Tensor|Size|device)"
    r"|torch (bool|u?int\d+|float\d+|bfloat16|float8_\w+|complex\d+|half|float|double|long|int|short)"
)
"""The names a pickle of dense tensors, numbers, text, lists and dicts may mention."""

NOT_DENSE = re.compile(r"torch\._utils _rebuild_(\w*(tensor|subclass)\w*)")


class Storage(NamedTuple):
    """Numbers one after another, somewhere else in the file."""

    key: str
    dtype: str
    count: int
    begin: int = 0
    """In elements; old files have views of storages."""


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


class Object(NamedTuple):
    """Something beside the weights, which nobody reads."""

    text: str


def meaning_for(where: str, storages: dict[str, Storage]) -> Meaning:
    """What the names, calls, states and storages of one file mean; each storage is put into `storages` by its key.

    Raises (when the machine meets it):
        UnsafeCheckpointError: a name outside `PARTS`, or a call of something else.
        CheckpointFormatError: a tensor that isn't dense.
    """

    def name(text: str) -> Name:
        if PARTS.fullmatch(text):
            return Name(text)
        kind = NOT_DENSE.fullmatch(text)
        if kind:
            raise CheckpointFormatError(f"{where}: holds a {kind[1]}; only dense tensors can be read")
        raise name_refusal(text, where=where, advice="save module.state_dict() instead of objects")

    def call(target: Any, arguments: Any) -> Any:
        return _result(called_name(target, arguments, where=where), arguments)

    def storage(identity: Any) -> Storage:
        found = _storage(identity)
        return storages.setdefault(found.key, found._replace(begin=0))._replace(begin=found.begin)

    return Meaning(name, call, _accept_state, storage, _is_key)


def _result(text: str, arguments: tuple[Any, ...]) -> Any:
    """What stands for a call's result, never larger than what the program itself wrote down: nothing is copied,
    joined or repeated."""
    match text.rpartition(" ")[2]:
        case "_rebuild_tensor" | "_rebuild_tensor_v2":
            return _tensor(*arguments[:4], metadata=arguments[6] if len(arguments) > 6 else None)
        case "_rebuild_tensor_v3":
            return _tensor(*arguments[:4], named=arguments[6], metadata=arguments[7] if len(arguments) > 7 else None)
        case "_rebuild_parameter" | "_rebuild_parameter_with_state" | "Parameter":
            return arguments[0]
        case "_rebuild_from_type_v2":
            function, _, inner, _ = arguments
            if not isinstance(function, Name) or not function.text.startswith("torch._utils "):
                raise ValueError("a tensor that isn't made by torch")
            return _result(function.text, inner)
        case "OrderedDict" | "defaultdict" | "dict":
            return {}
        case "Counter":
            return arguments[0] if arguments and isinstance(arguments[0], dict) else {}
        case "Size":
            return arguments[0]
    return Object(text)


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *, named: Any = None, metadata: Any = None) -> Tensor:
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    if not all(is_size(number) for number in (offset, *shape, *strides)) or len(shape) != len(strides):
        raise ValueError("a tensor of impossible shape or strides")  # not shown: a nest of lists could print for ever
    dtype = storage.dtype if named is None else _dtype_of(named)
    marks = metadata if isinstance(metadata, Mapping) else {}
    return Tensor(
        storage, offset, tuple(shape), tuple(strides), dtype, marks.get("conj") is True, marks.get("neg") is True
    )


def _dtype_of(named: Any) -> str:
    kind = named.text.removeprefix("torch ") if isinstance(named, Name) else None
    if kind not in DTYPES:
        raise ValueError(f"{kind} is no type for weights")
    return DTYPES[kind]


def _storage(identity: Any) -> Storage:
    """A persistent id: ("storage", class, key, device, count), in old files with a view (key, begin, count)."""
    _, named, key, _, count, *view = identity
    kind = named.text.rpartition(" ")[2].removesuffix("Storage") if isinstance(named, Name) else None
    if identity[0] != "storage" or kind not in STORAGES or not is_size(count) or not is_word(key):
        raise ValueError(f"a storage of unknown kind {kind}")
    begin = view[0][1] if view and view[0] else 0
    if not is_size(begin):
        raise ValueError("a view of a storage that begins nowhere")
    return Storage(str(key), STORAGES[kind], count, begin)


def _accept_state(target: Any, state: Any) -> None:
    """A state dict's metadata and a parameter's attributes are dropped; anything else has no state."""
    if not isinstance(target, dict | Tensor | Object):
        raise ValueError(f"the state of a {type(target).__name__}")


def _is_key(key: Any) -> bool:
    """Whether it can be a dict's key: only what is flat, whatever stands in for it here."""
    flat = str | int | float | bytes | None | Name | Object
    return isinstance(key, flat) or (isinstance(key, tuple) and all(isinstance(part, flat) for part in key))
