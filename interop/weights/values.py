"""Values that no trained network has: NaN, infinity, variances below zero. `inspect` lists them, readers warn."""

from collections.abc import Mapping

import numpy as np

from interop.errors import warn_caller
from interop.formats.containers import short_list

__all__ = ["StrangeValuesWarning", "value_problems", "warn_of_values"]

SHOWN = 3


class StrangeValuesWarning(UserWarning):
    """Weights hold NaN, infinity, or variances below zero: what is computed with them is of no use."""


def value_problems(name: str, array: np.ndarray) -> list[str]:
    """What is wrong with a tensor's values, in words; empty where nothing is.

    Example:
        >>> value_problems("fc.bias", np.array([1.0, np.nan, np.inf]))
        ['fc.bias: 1 NaN of 3 values', 'fc.bias: 1 infinite of 3 values']
        >>> value_problems("bn1.running_var", np.array([1.0, -0.5]))
        ['bn1.running_var: a variance below zero (-0.5)']
    """
    if array.dtype.kind in "biu":
        return []
    known = array if array.dtype.kind in "fc" else array.astype(np.float32)  # bfloat16, float8
    finite = np.isfinite(known)
    problems = []
    if not finite.all():
        counts = {"NaN": int(np.isnan(known).sum()), "infinite": int(np.isinf(known).sum())}
        problems = [f"{name}: {count} {word} of {array.size} values" for word, count in counts.items() if count]
    if name.rpartition(".")[2] == "running_var" and known.dtype.kind == "f" and finite.any():
        lowest = float(known[finite].min())
        problems += [f"{name}: a variance below zero ({lowest:.6g})"] if lowest < 0 else []
    return problems


def warn_of_values(arrays: Mapping[str, np.ndarray], *, where: str) -> None:
    """Says in one line what is wrong with the values, if anything is."""
    problems = [problem for name, array in arrays.items() for problem in value_problems(name, array)]
    if problems:
        warn_caller(
            StrangeValuesWarning(
                f"{where}: no trained network has such values: {short_list(problems, at_most=SHOWN)}; what is computed "
                "with them is of no use (python -m interop inspect FILE lists them)"
            )
        )
