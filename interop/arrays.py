"""From any framework's array to NumPy and from NumPy to torch, without changing a bit.

The one place that knows how bfloat16 and float8 are converted: NumPy has no such types itself (`ml_dtypes` does), and
torch refuses `.numpy()` for them, so they are passed on as unsigned integers of the same width. `as_numpy` doesn't
import torch: a value can only be a tensor where torch was imported already.
"""

import sys
from typing import Any

import numpy as np

from byol_jax.errors import CheckpointFormatError, MissingDependencyError, UnsafeCheckpointError

__all__ = [
    "DTYPE_NAMES",
    "as_contiguous",
    "as_numpy",
    "as_tensor",
    "dtype_named",
    "fresh_copy",
    "import_torch",
    "is_expanded",
    "tensor_dtype",
    "tensor_view",
]

EXTENSION_DTYPES = ("bfloat16", "float8_e4m3fn", "float8_e5m2")
"""Types that both torch and ml_dtypes have by these names, and NumPy lacks."""

DTYPE_NAMES = (
    *("bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
    *EXTENSION_DTYPES,
)
"""What a weight may be made of: the types that NumPy (with ml_dtypes) and torch share."""

OLDEST_TORCH = (2, 10)
"""Older ones have known code-execution holes even with `weights_only=True`."""


def import_torch() -> Any:
    """The torch module.

    Raises:
        MissingDependencyError: torch is absent, or older than 2.10.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            'modules and writing .pt files need torch: pip install "byol-jax[torch]" (.safetensors and .npz do without)'
        ) from error
    version = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    if version < OLDEST_TORCH:
        raise MissingDependencyError(
            f'torch {torch.__version__} is too old to read files safely, 2.10 is needed: pip install "byol-jax[torch]"'
        )
    return torch


def is_expanded(tensor: Any) -> bool:
    """Whether a torch tensor, dense and with values, has one number in several places along an axis.

    Nothing can be written into such a tensor.
    """
    is_strided = str(tensor.layout) == "torch.strided"
    return is_strided and any(n > 1 and not step for n, step in zip(tensor.shape, tensor.stride(), strict=True))


def dtype_named(name: str) -> np.dtype:
    """The NumPy dtype of one of `DTYPE_NAMES`; `ml_dtypes` is loaded only for those that NumPy lacks.

    Example:
        >>> dtype_named("bfloat16").itemsize
        2
    """
    if name in EXTENSION_DTYPES:
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype(name)


def as_numpy(value: Any, name: str) -> np.ndarray:
    """A NumPy array, JAX array or torch tensor as a NumPy array in native byte order; it may share `value`'s memory.

    Args:
        value: any shape, any of `DTYPE_NAMES`; a tensor may lie on any device and in any strided layout.
        name: the leaf's name, for the message.

    Raises:
        UnsafeCheckpointError: an array of Python objects.
        CheckpointFormatError: no array, or one that is masked, not dense and strided, or of a type outside
            `DTYPE_NAMES`.

    Example:
        >>> as_numpy(np.arange(3, dtype=">i2"), "x").dtype.isnative
        True
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _tensor_to_numpy(torch, value, name)
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        raise CheckpointFormatError(f"{name}: expected an array, got {type(value).__name__}")
    if isinstance(value, np.ma.MaskedArray):
        raise CheckpointFormatError(f"{name}: a masked array: fill it first, .filled(0)")
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise CheckpointFormatError(f"{name}: a {type(value).__name__} of {value.dtype} isn't a plain array") from error
    if array.dtype.hasobject:
        raise UnsafeCheckpointError(f"{name}: an array of Python objects; expected numbers")
    if array.dtype.name not in DTYPE_NAMES:
        raise CheckpointFormatError(f"{name}: {array.dtype} is no weights' type; use one of {', '.join(DTYPE_NAMES)}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _tensor_to_numpy(torch: Any, tensor: Any, name: str) -> np.ndarray:
    if tensor.is_meta:
        raise CheckpointFormatError(f"{name}: a meta tensor; expected a dense one with values")
    dtype_name = tensor_dtype(tensor, name)
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    if dtype_name in EXTENSION_DTYPES:
        carrier = {1: torch.uint8, 2: torch.uint16}[tensor.element_size()]
        return tensor.view(carrier).numpy().view(dtype_named(dtype_name))
    return tensor.numpy()


def tensor_dtype(tensor: Any, name: str) -> str:
    """The name in `DTYPE_NAMES` of a dense torch tensor's type.

    Raises:
        CheckpointFormatError: a sparse, quantised or nested tensor, or one of another type.
    """
    if str(tensor.layout) != "torch.strided" or tensor.is_quantized or tensor.is_nested:
        kind = "quantised" if tensor.is_quantized else str(tensor.layout)
        raise CheckpointFormatError(f"{name}: a {kind} tensor; expected a dense one with values")
    dtype_name = str(tensor.dtype).removeprefix("torch.")
    if dtype_name not in DTYPE_NAMES:
        raise CheckpointFormatError(f"{name}: {tensor.dtype} isn't supported; use one of {', '.join(DTYPE_NAMES)}")
    return dtype_name


def as_tensor(array: np.ndarray) -> Any:
    """The same bits as a torch tensor on the CPU with memory of its own."""
    return tensor_view(fresh_copy(array))


def tensor_view(array: np.ndarray) -> Any:
    """The same bits as a torch tensor in the array's own memory; in a copy where the array is read-only or strided.

    (torch knows no read-only tensors.)

    Example:
        >>> array = np.zeros(2, np.float32)
        >>> tensor_view(array)[0] = 1
        >>> array.tolist()
        [1.0, 0.0]
    """
    torch = import_torch()
    array = as_contiguous(array) if array.flags.writeable else fresh_copy(array)
    if array.dtype.name in EXTENSION_DTYPES:
        carrier = {1: np.uint8, 2: np.uint16}[array.dtype.itemsize]
        return torch.from_numpy(array.view(carrier)).view(getattr(torch, array.dtype.name))
    return torch.from_numpy(array)


def fresh_copy(array: np.ndarray) -> np.ndarray:
    """A contiguous, writable copy; a scalar stays a scalar (`np.ascontiguousarray` makes it a vector)."""
    return np.array(array, order="C", copy=True)


def as_contiguous(array: np.ndarray) -> np.ndarray:
    """The array itself where it is contiguous, else a contiguous copy; for reading only.

    (A side of 1 may have any stride, and torch refuses negative ones.)

    Example:
        >>> array = np.zeros((2, 3))
        >>> as_contiguous(array) is array, as_contiguous(array.T).flags.c_contiguous
        (True, True)
    """
    return array if array.flags.c_contiguous and min(array.strides, default=0) >= 0 else fresh_copy(array)
