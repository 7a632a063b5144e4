"""How far two arrays are apart: what is asked of a traced network, and measured in the zoo."""

from typing import Any

import numpy as np

__all__ = ["SMALLEST_SCALE", "relative_difference"]

SMALLEST_SCALE = 1e-3
"""Values that are zero in truth, such as the mean of what was centred just before, are compared to this."""


def relative_difference(ours: Any, wanted: np.ndarray, smallest_scale: float = SMALLEST_SCALE) -> float:
    """The largest difference over the largest value, or over `smallest_scale`; infinite where the shapes differ."""
    ours = np.asarray(ours)
    if ours.shape != wanted.shape:
        return float("inf")
    scale = max(float(np.abs(wanted).max(initial=0)), smallest_scale)
    return float(np.abs(ours.astype(np.float64) - wanted.astype(np.float64)).max(initial=0) / scale)
