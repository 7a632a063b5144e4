"""DeepMind's checkpoints: pickles that dill wrote, in 2020 or today, read as data.

A pickle is a program. `pickle_machine` carries it out with plain data as the only result; dill, jax and haiku are never
asked. Here is what these pickles may name, and the plain data that stands in for each: arrays, named tuples, mappings.
No function here is one of those that it stands in for, and any other name ends the reading. What the data mean,
`interop.learners` knows.
"""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from byol_jax.errors import CheckpointFormatError, UnsafeCheckpointError
from interop.arrays import DTYPE_NAMES
from interop.formats.pickle_machine import (
    Bounded,
    Meaning,
    Name,
    begins_as_pickle,
    called_name,
    is_size,
    name_refusal,
    run_pickle,
)
from interop.formats.regular_file import open_regular, refuse_damage
from interop.formats.torch_file import begins_as_legacy

__all__ = ["is_plain_pickle", "load_pickle"]


def is_plain_pickle(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as a pickle of protocol 2 to 5 and isn't one of torch's."""
    try:
        with open_regular(os.fspath(path)) as (file, _):
            beginning = file.read(32)
    except (OSError, CheckpointFormatError):
        return False
    return begins_as_pickle(beginning) and not begins_as_legacy(beginning)


def load_pickle(path: str | os.PathLike[str]) -> Any:
    """What a pickle holds, as plain data: named tuples and haiku's mappings come as dicts, arrays as NumPy's.

    Raises:
        UnsafeCheckpointError: it asks for a name or an instruction that isn't allowed, or for more bytes than it has.
        CheckpointFormatError: unreadable or damaged.
    """
    where = os.fspath(path)
    with refuse_damage(where), open_regular(where) as (file, size):
        reader = _Reader(where, size)
        return run_pickle(Bounded(file, size), Meaning(reader.name, reader.call, reader.build), where=where)


class _Fields(NamedTuple):
    """A named tuple's class: only its fields."""

    names: tuple[str, ...]


class _Dtype:
    """A NumPy dtype in two steps, as pickles make it: kind and width, then the byte order."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.dtype: np.dtype | None = None

    def order(self, order: str) -> None:
        dtype = np.dtype((order if order in "<>" else "") + self.code)
        if dtype.name not in DTYPE_NAMES:
            raise ValueError(f"{dtype} is no type for weights")
        self.dtype = dtype


class _Reader:
    """What DeepMind's names, calls and states mean; counts the bytes that they make."""

    def __init__(self, where: str, size: int) -> None:
        self.where, self.room = where, size

    def name(self, text: str) -> Name:
        if text not in BUILDERS and text not in NOUNS:
            advice = "only DeepMind's BYOL checkpoints are read from pickles, all else from files of arrays"
            raise name_refusal(text, where=self.where, advice=advice)
        return Name(text)

    def call(self, target: Any, arguments: Any) -> Any:
        if isinstance(target, _Fields):
            return dict(zip(target.names, arguments, strict=True))
        made = BUILDERS[called_name(target, arguments, where=self.where, functions=BUILDERS)](*arguments)
        if isinstance(made, np.ndarray | bytes):
            self.take(made)
        return made

    def build(self, target: Any, state: Any) -> None:
        if isinstance(target, _Dtype):
            target.order(state[1])
        else:
            self.take(_fill(target, state))

    def take(self, made: np.ndarray | bytes) -> None:
        """Counts the bytes of arrays, and compares those of one text: an honest file has more than either."""
        if isinstance(made, np.ndarray):
            self.room -= made.nbytes
        if self.room < 0 or (isinstance(made, bytes) and len(made) > self.room):
            raise UnsafeCheckpointError(f"{self.where}: its arrays unfold to more bytes than the file has")


def _text_as_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError("text in another encoding than latin1")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


def _dtype(code: str, align: Any = False, copy: Any = True) -> _Dtype:
    if not isinstance(code, str) or len(code) > 3 or code[:1] not in set("fiub"):
        raise ValueError("a dtype that isn't a number's")
    return _Dtype(code)


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    if kind != Name("numpy ndarray") or shape != (0,):
        raise ValueError("an array of another class than numpy.ndarray")
    return np.empty(0, np.uint8)


def _fill(array: Any, state: Any) -> np.ndarray:
    """Does what NumPy does with an array's pickled state, after checks of all of it; returns the array."""
    _, shape, dtype, fortran_order, data = state
    if not isinstance(array, np.ndarray) or not isinstance(dtype, _Dtype) or dtype.dtype is None:
        raise ValueError("an array of unknown type")
    if not isinstance(data, bytes) or not all(map(is_size, shape)):
        raise ValueError("an array of impossible shape")  # not shown: a nest of lists could print for ever
    complete: Any = (1, shape, dtype.dtype, bool(fortran_order), data)
    array.__setstate__(complete)  # checks the number of bytes
    return array


def _dill_array(make: Any, arguments: Any, state: Any, attributes: Any = None) -> np.ndarray:
    if not isinstance(make, Name) or BUILDERS.get(make.text) is not _empty_array:
        raise ValueError("an array that isn't made by NumPy")
    return _fill(_empty_array(*arguments), state)


def _scalar(dtype: Any, data: bytes) -> Any:
    return _fill(np.empty(0, np.uint8), (1, (), dtype, False, data))[()]


def _named_tuple(name: str, fields: Any, *module_and_defaults: Any) -> _Fields:
    if not all(isinstance(field, str) for field in fields) or len(set(fields)) != len(fields):
        raise ValueError("a named tuple whose fields aren't distinct words")
    return _Fields(tuple(fields))


def _mapping(content: Any) -> dict[Any, Any]:
    if not isinstance(content, dict):
        raise ValueError("a mapping that isn't made from a dict")
    return content


BUILDERS: dict[str, Callable[..., Any]] = {
    "_codecs encode": _text_as_bytes,
    "__builtin__ bytes": _no_bytes,
    "numpy dtype": _dtype,
    "numpy.core.multiarray _reconstruct": _empty_array,
    "numpy._core.multiarray _reconstruct": _empty_array,
    "numpy.core.multiarray scalar": _scalar,
    "numpy._core.multiarray scalar": _scalar,
    "dill._dill _create_array": _dill_array,
    "dill._dill _create_namedtuple": _named_tuple,
    "jax._src.array _reconstruct_array": _dill_array,
    "haiku._src.data_structures frozendict": _mapping,
    "haiku._src.data_structures FlatMapping": _mapping,
    "haiku._src.data_structures FlatMap": _mapping,
}
"""All functions that a pickle may call, and what stands in for each. Sources: files of dill 0.3.2 to 0.4.1, Haiku of
2020 (`numpy.core`, its own mappings, a plain array as random key) and of today (`numpy._core`, dicts, a JAX array)."""

NOUNS = {"numpy ndarray"}
"""Names that may be mentioned but not called."""
