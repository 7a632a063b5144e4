"""State dicts for the tests here, and what "the same" means for them: names, order, types, shapes and bits."""

import importlib.util
import math

import hypothesis.strategies as st
import numpy as np

from interop.arrays import DTYPE_NAMES, dtype_named

FORMATS = (".safetensors", ".npz", *([".pt"] if importlib.util.find_spec("torch") else []))

HELD = {
    ".pt": DTYPE_NAMES,
    ".safetensors": tuple(name for name in DTYPE_NAMES if name != "complex128"),
    ".npz": tuple(name for name in DTYPE_NAMES if not name.startswith("float8")),
}
"""Which types each format is promised to hold."""


def small_state_dict(seed: int = 0) -> dict[str, np.ndarray]:
    """A convolution, its batch norm and a linear layer, about 1 kB."""
    random = np.random.default_rng(seed)
    return {
        "conv1.weight": random.normal(size=(4, 3, 3, 3)).astype(np.float32),
        "bn1.running_var": np.ones(4, np.float32),
        "bn1.num_batches_tracked": np.asarray(7, np.int64),
        "fc.weight": random.normal(size=(2, 4)).astype(np.float16),
        "fc.bias": random.normal(size=2).astype(dtype_named("bfloat16")),
    }


def assert_identical(one, other, *, ordered=True):
    """The same names, types, shapes and bits (NaN payloads and signed zeros included)."""
    assert list(one) == list(other) if ordered else set(one) == set(other)
    for name in one:
        left, right = np.asarray(one[name]), np.asarray(other[name])
        assert left.dtype == right.dtype, name
        assert left.shape == right.shape, name
        assert left.tobytes() == right.tobytes(), name


@st.composite
def arrays(draw, dtype_names=DTYPE_NAMES, shape=None):
    """Any bits of any type, NaN payloads included, in any memory layout."""
    dtype = dtype_named(draw(st.sampled_from(dtype_names)))
    if shape is None:
        shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    count = math.prod(shape)
    data = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    if dtype.kind == "b":
        data = bytes(byte & 1 for byte in data)
    array = np.frombuffer(bytearray(data), dtype).reshape(shape)
    layout = draw(st.sampled_from(["plain", "transposed", "fortran", "reversed", "read-only"]))
    if layout == "transposed":
        array = array.T
    if layout == "fortran":
        array = np.asfortranarray(array)
    if layout == "reversed" and array.ndim:
        array = array[::-1]
    if layout == "read-only":
        array.flags.writeable = False
    return array


names = st.lists(
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\."), min_size=1, max_size=6),
    min_size=1,
    max_size=3,
).map(lambda parts: ".".join(["net", *parts]))


def state_dicts(dtype_names=DTYPE_NAMES):
    return st.dictionaries(names, arrays(dtype_names), max_size=5)
