"""DeepMind's checkpoints: pickles that dill wrote, in 2020 or today, read as data.

A pickle is a program. `pickle_machine` carries it out with plain data as the only result; dill, jax and haiku are never
asked. A name outside `dill_builders.BUILDERS` ends the reading. What the data mean is the business of
`interop.learners`.
"""

import os
from typing import Any

import numpy as np

from byol_jax.errors import CheckpointFormatError, UnsafeCheckpointError
from interop.formats.dill_builders import BUILDERS, NOUNS, Dtype, Fields, Name, filled
from interop.formats.pickle_machine import Bounded, Meaning, run_pickle
from interop.formats.regular_file import open_regular, refuse_damage
from interop.formats.torch_file import LEGACY_MAGIC

__all__ = ["is_plain_pickle", "load_pickle"]


def is_plain_pickle(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as a pickle of protocol 2 to 5 and isn't one of torch's."""
    try:
        with open_regular(os.fspath(path)) as (file, _):
            beginning = file.read(len(LEGACY_MAGIC))
    except (OSError, CheckpointFormatError):
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
    with refuse_damage(where, damaged="damaged pickle"), open_regular(where) as (file, size):
        reader = _Reader(where, size)
        meaning = Meaning(reader.named, reader.called, reader.built)
        return run_pickle(Bounded(file, size), meaning, where=where)


class _Reader:
    """What DeepMind's names, calls and states mean; counts the bytes that they make."""

    def __init__(self, where: str, size: int) -> None:
        self.where, self.room = where, size

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

    def built(self, target: Any, state: Any) -> None:
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
