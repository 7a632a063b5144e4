"""A pickle's program carried out with plain data as the only result. Python's own unpickler is never asked.

The few instructions that lists, dicts, numbers and text need are done here. What a name, a call, a state or a storage
means, the caller says (`Meaning`): `dill_pickle` for DeepMind's files, `torch_pickle` for PyTorch's. So are sets,
byte arrays and what is put into an object, where the caller has something that stands for them. Any other instruction
ends the reading.
"""

import pickletools
from collections.abc import Callable, Container
from typing import IO, Any, NamedTuple

from byol_jax.errors import UnsafeCheckpointError
from interop.formats.regular_file import refuse_damage

__all__ = [
    "LONG_TEXT",
    "MOST_OPERATIONS",
    "Bounded",
    "Meaning",
    "Name",
    "begins_as_pickle",
    "called_name",
    "is_size",
    "is_word",
    "name_refusal",
    "run_pickle",
]

MOST_OPERATIONS = 4_000_000
"""Instructions in one pickle, each worth at most some 70 bytes of memory. A ResNet-50's file has 52,000 from dill and
16,000 from torch, a ResNet-200's some 200,000."""

LONG_TEXT = 4096
"""Text and bytes beyond this, and tuples of them, are read once and not kept for a second reference, which no pickler
makes: it halves the memory, and nobody gets a gigabyte of arrays out of a megabyte."""

PUSHED = {"BININT", "BININT1", "BININT2", "INT", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
PUSHED |= {"BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BINSTRING", "SHORT_BINSTRING"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUT, GET = {"BINPUT", "LONG_BINPUT", "PUT"}, {"BINGET", "LONG_BINGET", "GET"}
STRANGERS = {"EMPTY_SET": "set", "FROZENSET": "frozenset", "BYTEARRAY8": "bytearray"}
"""Instructions that make what has no plain form here."""
NOTHING = {"PROTO", "FRAME", "STOP"}


class Name(NamedTuple):
    """A name that the pickle mentions, "module name"; nothing is imported."""

    text: str


def is_word(key: Any) -> bool:
    """Text or a whole number; hashing nested tuples could exhaust the C stack."""
    return isinstance(key, str | int)


def is_size(number: Any) -> bool:
    """A whole number that can be a size or a position."""
    return type(number) is int and 0 <= number < 1 << 63


def _word(key: Any) -> Any:
    if not is_word(key):
        raise ValueError("a dict whose keys aren't text")
    return key


def _never(thing: Any) -> bool:
    return False


class Meaning(NamedTuple):
    """What lies outside the machine. Each function raises for what isn't allowed.

    Attributes:
        name: `name("module name")` gives what stands for a name.
        call: `call(target, arguments)` gives what stands for a call's result.
        build: `build(target, state)` does to an object what its state asks for.
        storage: `storage(identity)` gives what stands for something outside the pickle; None where there is nothing.
        key: `key(thing)` gives what a dict has as its key.
        stranger: `stranger("set")` gives what stands for a set, a frozen set or a byte array; None where there are
            none.
        is_stranger: whether this is something of which only that it is there is known: what is put into it is dropped.
    """

    name: Callable[[str], Any]
    call: Callable[[Any, Any], Any]
    build: Callable[[Any, Any], None]
    storage: Callable[[Any], Any] | None = None
    key: Callable[[Any], Any] = _word
    stranger: Callable[[str], Any] | None = None
    is_stranger: Callable[[Any], bool] = _never


class Bounded:
    """A file that refuses to give more than it has: a length in a damaged pickle may ask for exabytes.

    The position is counted here: pickletools asks for it before every instruction, and a file would ask the system.
    """

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.at, self.size = file, file.tell(), size

    def tell(self) -> int:
        return self.at

    def read(self, count: int) -> bytes:
        if count > self.size - self.at:
            raise ValueError("truncated")
        self.at += count
        return self.file.read(count)

    def readline(self) -> bytes:
        line = self.file.readline(LONG_TEXT)
        self.at += len(line)
        return line


def begins_as_pickle(beginning: bytes) -> bool:
    """Whether a file that begins so can be a pickle of protocol 2 to 5.

    A safetensors header of 640 bytes begins like one, since its length comes first; zeros and a brace tell them apart.
    """
    is_header = beginning[3:8] == bytes(5) and beginning[8:9] == b"{"
    return beginning[:1] == b"\x80" and beginning[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and not is_header


def run_pickle(program: Any, meaning: Meaning, *, where: str, most: int = MOST_OPERATIONS) -> Any:
    """The result of the one pickle that begins at the file's position; afterwards the position is behind it.

    Args:
        program: a file, or `Bounded`.
        meaning: see there.
        where: the file's name, for messages.
        most: instructions.

    Raises:
        UnsafeCheckpointError: an instruction or a name that isn't allowed, or too many.
        CheckpointFormatError: a damaged program.
    """
    with refuse_damage(where, damaged="damaged pickle"):
        machine = _Machine(where, meaning)
        for number, (operation, argument, _) in enumerate(pickletools.genops(program)):
            if number > most:
                raise UnsafeCheckpointError(f"{where}: a pickle of so many instructions is no list of weights")
            machine.run(operation.name, argument)
        (content,) = machine.stack
        return content


def name_refusal(text: str, *, where: str, advice: str) -> UnsafeCheckpointError:
    """The error for a name that isn't allowed."""
    name = text.replace(" ", ".")[:200]
    return UnsafeCheckpointError(f"{where}: its pickle asks for {name}, nothing was run; {advice}")


def called_name(target: Any, arguments: Any, *, where: str, functions: Container[str] | None = None) -> str:
    """The name that a pickle calls.

    Raises:
        UnsafeCheckpointError: what it calls is no name, or none of `functions`, or the arguments are no tuple.
    """
    if isinstance(target, Name) and isinstance(arguments, tuple) and (functions is None or target.text in functions):
        return target.text
    raise UnsafeCheckpointError(f"{where}: its pickle calls something that isn't a function; nothing was run")


class _Machine:
    """The stack, the marks on it and the numbered references of one pickle's program."""

    def __init__(self, where: str, meaning: Meaning) -> None:
        self.where, self.meaning = where, meaning
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        """One instruction."""
        push = self.stack.append
        if name in PUSHED:
            push(argument)
        elif name in CONSTANTS:
            push(CONSTANTS[name])
        elif name in EMPTY:
            push(EMPTY[name]())
        elif name in TUPLES:
            push(tuple(self.pop(TUPLES[name])))
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name == "TUPLE":
            push(tuple(self.pop_to_mark()))
        elif name in PUT or name == "MEMOIZE":
            self.memo[len(self.memo) if name == "MEMOIZE" else int(argument)] = self.top_to_keep()
        elif name in GET:
            push(self.memo[int(argument)])
        elif name in ("SETITEM", "SETITEMS"):
            self.set_items(self.pop(2) if name == "SETITEM" else self.pop_to_mark())
        elif name in ("APPEND", "APPENDS"):
            items = self.pop(1) if name == "APPEND" else self.pop_to_mark()
            if not self.meaning.is_stranger(self.stack[-1]):
                list.extend(self.stack[-1], items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            push(self.meaning.name(argument if name == "GLOBAL" else " ".join(self.pop(2))))
        elif name in ("REDUCE", "NEWOBJ"):
            push(self.meaning.call(*self.pop(2)))
        elif name == "BUILD":
            (state,) = self.pop(1)
            self.meaning.build(self.stack[-1], state)
        elif name == "POP":
            self.pop(1)
        elif name == "POP_MARK":
            self.pop_to_mark()
        elif name == "BINPERSID" and self.meaning.storage is not None:
            push(self.meaning.storage(*self.pop(1)))
        elif self.meaning.stranger is not None and name in (*STRANGERS, "ADDITEMS", "NEWOBJ_EX"):
            self.run_strange(name, self.meaning.stranger)
        elif name not in NOTHING:
            raise UnsafeCheckpointError(f"{self.where}: its pickle builds objects ({name}); nothing was run")

    def run_strange(self, name: str, stranger: Callable[[str], Any]) -> None:
        """One instruction that plain data don't need."""
        if name == "NEWOBJ_EX":
            target, arguments, _ = self.pop(3)
            self.stack.append(self.meaning.call(target, arguments))
        elif name == "ADDITEMS":
            self.pop_to_mark()
            if not self.meaning.is_stranger(self.stack[-1]):
                raise ValueError("adds to something that isn't a set")
        else:
            if name == "FROZENSET":
                self.pop_to_mark()
            self.stack.append(stranger(STRANGERS[name]))

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) - (self.marks[-1] if self.marks else 0) < count:
            raise ValueError("takes more from the stack than there is")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def pop_to_mark(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def top_to_keep(self) -> Any:
        top = self.stack[-1]
        return None if _is_long(top) or (isinstance(top, tuple) and any(map(_is_long, top))) else top

    def set_items(self, items: list[Any]) -> None:
        if self.meaning.is_stranger(self.stack[-1]):
            return
        keys = map(self.meaning.key, items[::2])
        dict.update(self.stack[-1], zip(keys, items[1::2], strict=True))


def _is_long(thing: Any) -> bool:
    return isinstance(thing, str | bytes) and len(thing) > LONG_TEXT
