"""What DeepMind's pickles may name, and the plain data that stands in for each: arrays, named tuples, mappings.

No function here is one of those that it stands in for. The program that names them is read by `dill_pickle`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from interop.arrays import DTYPE_NAMES

__all__ = ["BUILDERS", "NOUNS", "Dtype", "Fields", "Name", "filled"]


class Name(NamedTuple):
    """A name that the pickle mentions; one of `BUILDERS` or `NOUNS`."""

    text: str


class Fields(NamedTuple):
    """A named tuple's class: only its fields."""

    names: tuple[str, ...]


class Dtype:
    """A NumPy dtype in two steps, as pickles make it: kind and width, then the byte order."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.dtype: np.dtype | None = None

    def order(self, order: str) -> None:
        dtype = np.dtype((order if order in "<>" else "") + self.code)
        if dtype.name not in DTYPE_NAMES:
            raise ValueError(f"{dtype} is no type for weights")
        self.dtype = dtype


def _text_as_bytes(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError("text in another encoding than latin1")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    return b""


def _dtype(code: str, align: Any = False, copy: Any = True) -> Dtype:
    if not isinstance(code, str) or len(code) > 3 or code[:1] not in set("fiub"):
        raise ValueError("a dtype that isn't a number's")
    return Dtype(code)


def _empty_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    if kind != Name("numpy ndarray") or shape != (0,):
        raise ValueError("an array of another class than numpy.ndarray")
    return np.empty(0, np.uint8)


def filled(array: Any, state: Any) -> np.ndarray:
    """What NumPy does with an array's pickled state, after checks of all of it."""
    _, shape, dtype, fortran_order, data = state
    if not isinstance(array, np.ndarray) or not isinstance(dtype, Dtype) or dtype.dtype is None:
        raise ValueError("an array of unknown type")
    if not isinstance(data, bytes) or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError("an array of impossible shape")  # not shown: a nest of lists could print for ever
    complete: Any = (1, shape, dtype.dtype, bool(fortran_order), data)
    array.__setstate__(complete)  # checks the number of bytes
    return array


def _dill_array(make: Any, arguments: Any, state: Any, attributes: Any = None) -> np.ndarray:
    if not isinstance(make, Name) or BUILDERS.get(make.text) is not _empty_array:
        raise ValueError("an array that isn't made by NumPy")
    return filled(_empty_array(*arguments), state)


def _scalar(dtype: Any, data: bytes) -> Any:
    return filled(np.empty(0, np.uint8), (1, (), dtype, False, data))[()]


def _named_tuple(name: str, fields: Any, *module_and_defaults: Any) -> Fields:
    if not all(isinstance(field, str) for field in fields) or len(set(fields)) != len(fields):
        raise ValueError("a named tuple whose fields aren't distinct words")
    return Fields(tuple(fields))


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
