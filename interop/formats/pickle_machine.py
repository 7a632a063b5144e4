"""A pickle's program carried out with plain data as the only result. Python's own unpickler is never asked.

The few instructions that lists, dicts, numbers and text need are done here; what a name, a call, a state or a storage
means is for whoever runs the machine to say (`Meaning`): `dill_pickle` and `torch_pickle` do. Any other instruction
ends the reading.
"""

import pickletools
from collections.abc import Callable
from typing import IO, Any, NamedTuple

from byol_jax.errors import UnsafeCheckpointError

__all__ = ["LONG_TEXT", "MOST_OPERATIONS", "Bounded", "Meaning", "is_word", "run_pickle"]

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
NOTHING = {"PROTO", "FRAME", "STOP"}


def is_word(key: Any) -> bool:
    """Text or a whole number; hashing nested tuples could exhaust the C stack."""
    return isinstance(key, str | int)


class Meaning(NamedTuple):
    """What lies outside the machine."""

    named: Callable[[str], Any]
    """`named("module name")`: what stands for a name; raises for one that isn't allowed."""

    called: Callable[[Any, Any], Any]
    """`called(target, arguments)`: what stands for a call's result."""

    built: Callable[[Any, Any], None]
    """`built(target, state)`: what an object's state does to it."""

    storage: Callable[[Any], Any] | None = None
    """`storage(identity)`: what stands for something outside the pickle; None where there is nothing."""

    is_key: Callable[[Any], bool] = is_word
    """What a dict's key may be."""


class Bounded:
    """A file that refuses to give more than it has: a length in a damaged pickle may ask for exabytes.

    Where it stands is counted here, as pickletools asks before every instruction and a file would ask the system.
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


def run_pickle(program: Any, meaning: Meaning, *, where: str, most: int = MOST_OPERATIONS) -> Any:
    """The result of the one pickle that begins at the file's position; afterwards the position is behind it.

    Args:
        program: a file, or `Bounded`.
        meaning: see there.
        where: the file's name, for messages.
        most: instructions.

    Raises:
        UnsafeCheckpointError: an instruction or a name that isn't allowed, or too many.
        ValueError, TypeError, IndexError and others: a damaged program.
    """
    machine = _Machine(where, meaning)
    for number, (operation, argument, _) in enumerate(pickletools.genops(program)):
        if number > most:
            raise UnsafeCheckpointError(f"{where}: a pickle of so many instructions is no list of weights")
        machine.run(operation.name, argument)
    (content,) = machine.stack
    return content


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
            push(tuple(self.popped(TUPLES[name])))
        elif name == "MARK":
            self.marks.append(len(self.stack))
        elif name == "TUPLE":
            push(tuple(self.marked()))
        elif name in PUT or name == "MEMOIZE":
            self.memo[len(self.memo) if name == "MEMOIZE" else int(argument)] = self.kept()
        elif name in GET:
            push(self.memo[int(argument)])
        elif name in ("SETITEM", "SETITEMS"):
            self.set_items(self.popped(2) if name == "SETITEM" else self.marked())
        elif name in ("APPEND", "APPENDS"):
            items = self.popped(1) if name == "APPEND" else self.marked()
            list.extend(self.stack[-1], items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            push(self.meaning.named(argument if name == "GLOBAL" else " ".join(self.popped(2))))
        elif name in ("REDUCE", "NEWOBJ"):
            push(self.meaning.called(*self.popped(2)))
        elif name == "BUILD":
            (state,) = self.popped(1)
            self.meaning.built(self.stack[-1], state)
        elif name == "BINPERSID" and self.meaning.storage is not None:
            push(self.meaning.storage(*self.popped(1)))
        elif name not in NOTHING:
            raise UnsafeCheckpointError(f"{self.where}: its pickle builds objects ({name}); nothing was run")

    def popped(self, count: int) -> list[Any]:
        if len(self.stack) - (self.marks[-1] if self.marks else 0) < count:
            raise ValueError("takes more from the stack than there is")
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def marked(self) -> list[Any]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def kept(self) -> Any:
        top = self.stack[-1]
        return None if _is_long(top) or (isinstance(top, tuple) and any(map(_is_long, top))) else top

    def set_items(self, items: list[Any]) -> None:
        keys = items[::2]
        if not all(map(self.meaning.is_key, keys)):
            raise ValueError("a dict whose keys aren't text")
        dict.update(self.stack[-1], zip(keys, items[1::2], strict=True))


def _is_long(thing: Any) -> bool:
    return isinstance(thing, str | bytes) and len(thing) > LONG_TEXT
