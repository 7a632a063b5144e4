"""DeepMind's checkpoints: pickles that dill wrote, in 2020 or today, read as data.

A pickle is a program. This file interprets the few instructions that lists, dicts, numbers, text, NumPy arrays and
named tuples need, with plain data as the only result; Python's own unpickler, dill, jax and haiku are never asked. A
name outside `dill_builders.BUILDERS`, or any other instruction, ends the reading. What the data mean is the business of
`interop.checkpoints`.
"""

import os
import pickletools
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from byol_jax.errors import CheckpointFormatError, InteropError, UnsafeCheckpointError
from interop.formats.dill_builders import BUILDERS, NOUNS, Dtype, Fields, Name, filled
from interop.formats.torch_file import LEGACY_MAGIC

__all__ = ["is_plain_pickle", "load_pickle"]

MOST_OPERATIONS = 4_000_000
"""Instructions in one pickle. A ResNet-50's file has 52,000, a ResNet-200's some 200,000."""

LONG_TEXT = 4096
"""Text and bytes beyond this are read once and not kept for a second reference, which no pickler makes: it halves the
memory, and nobody gets a gigabyte of arrays out of a megabyte."""

PUSHED = {"BININT", "BININT1", "BININT2", "INT", "LONG1", "LONG4", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
PUSHED |= {"BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUT, GET = {"BINPUT", "LONG_BINPUT", "PUT"}, {"BINGET", "LONG_BINGET", "GET"}
NOTHING = {"PROTO", "FRAME", "STOP"}


def is_plain_pickle(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as a pickle of protocol 2 to 5 and isn't one of torch's."""
    try:
        with open(path, "rb") as file:
            beginning = file.read(len(LEGACY_MAGIC))
    except OSError:
        return False
    return (
        beginning[:1] == b"\x80"
        and beginning[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
        and (beginning != LEGACY_MAGIC)
    )


def load_pickle(path: str | os.PathLike[str]) -> Any:
    """What a pickle holds, as plain data: named tuples and haiku's mappings come as dicts, arrays as NumPy's.

    Raises:
        UnsafeCheckpointError: it asks for a name or an instruction that isn't allowed, or for more bytes than it has.
        CheckpointFormatError: unreadable or damaged.
    """
    where = os.fspath(path)
    try:
        size = os.stat(where).st_size
        with open(where, "rb") as file:
            machine = _Machine(where, size)
            bounded: Any = _Bounded(file, size)
            for number, (operation, argument, _) in enumerate(pickletools.genops(bounded)):
                if number > MOST_OPERATIONS:
                    raise UnsafeCheckpointError(f"{where}: a pickle of so many instructions is no list of weights")
                machine.run(operation.name, argument)
        (content,) = machine.stack
    except InteropError:
        raise
    except OSError as error:
        raise CheckpointFormatError(f"{where}: cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged program fails in a dozen ways
        reason = " ".join(str(error).split())[:200]
        raise CheckpointFormatError(f"{where}: damaged pickle: {type(error).__name__}: {reason}") from error
    return content


class _Bounded:
    """A file that refuses to give more than it has: a length in a damaged pickle may ask for exabytes."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.size, self.tell = file, size, file.tell

    def read(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise ValueError("truncated")
        return self.file.read(count)

    def readline(self) -> bytes:
        return self.file.readline(LONG_TEXT)


class _Machine:
    """The stack, the marks on it and the numbered references of one pickle's program."""

    def __init__(self, where: str, size: int) -> None:
        self.where, self.room = where, size
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
            push(self.named(argument if name == "GLOBAL" else " ".join(self.popped(2))))
        elif name in ("REDUCE", "NEWOBJ"):
            push(self.called(*self.popped(2)))
        elif name == "BUILD":
            self.build(*self.popped(1))
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
        return None if isinstance(top, str | bytes) and len(top) > LONG_TEXT else top

    def set_items(self, items: list[Any]) -> None:
        keys = items[::2]
        if not all(isinstance(key, str | int) for key in keys):  # hashing nested tuples could exhaust the C stack
            raise ValueError("a dict whose keys aren't text")
        dict.update(self.stack[-1], zip(keys, items[1::2], strict=True))

    def named(self, text: str) -> Name:
        if text not in BUILDERS and text not in NOUNS:
            raise UnsafeCheckpointError(
                f"{self.where}: its pickle asks for {text.replace(' ', '.')[:200]}, nothing was run; "
                "only DeepMind's BYOL checkpoints are read from pickles, all else from files of arrays"
            )
        return Name(text)

    def called(self, target: Any, arguments: Any) -> Any:
        if isinstance(target, Fields):
            return dict(zip(target.names, arguments, strict=True))
        if not isinstance(target, Name) or target.text not in BUILDERS or not isinstance(arguments, tuple):
            raise UnsafeCheckpointError(
                f"{self.where}: its pickle calls something that isn't a function; nothing was run"
            )
        made = BUILDERS[target.text](*arguments)
        if isinstance(made, np.ndarray | bytes):
            self.take(made)
        return made

    def build(self, state: Any) -> None:
        target = self.stack[-1]
        if isinstance(target, Dtype):
            target.order(state[1])
        else:
            self.take(filled(target, state))

    def take(self, made: np.ndarray | bytes) -> None:
        """Counts bytes of text apart from arrays': an honest file has more than either."""
        if isinstance(made, np.ndarray):
            self.room -= made.nbytes
        if self.room < 0 or (isinstance(made, bytes) and len(made) > self.room):
            raise UnsafeCheckpointError(f"{self.where}: its arrays unfold to more bytes than the file has")
