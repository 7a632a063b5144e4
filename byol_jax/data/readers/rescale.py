"""From a DICOM file's stored numbers to those they stand for: slope and intercept, frame by frame, or a modality LUT.

    number = stored x RescaleSlope + RescaleIntercept

They stand in the file itself, or in enhanced files in PixelValueTransformationSequence: in the functional groups of
each frame, or in those that all share (DICOM PS3.3, C.7.6.16.2.9; the table: C.11.1). A file without any has numbers
that stand for themselves; that is said, since others in its folder may have some.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from byol_jax.data.unusable import UnusableImageError

__all__ = ["AS_STORED", "Rescale", "find_rescale"]

_NAMES = ("RescaleSlope", "RescaleIntercept")


class Rescale(NamedTuple):
    """What becomes of stored numbers.

    Attributes:
        apply: `apply(numbers, frame)`, of an array of any shape.
        dtype: of its results; None: the stored one, since nothing is done.
        said: a line for a person, or None.
    """

    apply: Callable[[np.ndarray, int], np.ndarray]
    dtype: str | None = None
    said: str | None = None


AS_STORED = Rescale(lambda numbers, _: numbers)


def find_rescale(header: Any, frames: int) -> Rescale:
    """What a file says of its numbers.

    Args:
        header: pydicom's dataset.

    Raises:
        UnusableImageError: something that can't be done rightly.
    """
    if header.get("ModalityLUTSequence"):
        return _find_table(header)
    found = _find_lines(header, frames)
    lines = [line for line in found if line is not None]
    if not lines:
        return AS_STORED._replace(said="no RescaleSlope: its numbers as they are stored")
    if len(lines) < len(found):
        raise UnusableImageError(f"frame {found.index(None) + 1} has no RescaleSlope, and others have")
    if set(lines) == {(1.0, 0.0)}:
        return AS_STORED

    def apply(numbers: np.ndarray, frame: int) -> np.ndarray:
        slope, intercept = lines[frame]
        return (numbers * np.float64(slope) + intercept).astype(np.float32)

    return Rescale(apply, "float32")


def _find_lines(header: Any, frames: int) -> list[tuple[float, float] | None]:
    """(slope, intercept) of each frame: its own, else the shared one, else the file's."""
    shared = _line(_group(header.get("SharedFunctionalGroupsSequence"), 0)) or _line(header)
    own = header.get("PerFrameFunctionalGroupsSequence")
    if not own:
        return [shared] * frames
    if len(own) != frames:
        raise UnusableImageError(f"a DICOM file of {frames} frames that describes {len(own)}")
    return [_line(_group(own, frame)) or shared for frame in range(frames)]


def _group(groups: Any, number: int) -> Any:
    """What a functional group says of its numbers' meaning; None where it says nothing."""
    found = groups[number].get("PixelValueTransformationSequence") if groups else None
    return found[0] if found else None


def _line(dataset: Any) -> tuple[float, float] | None:
    given = {} if dataset is None else {name: dataset.get(name) for name in _NAMES}
    given = {name: float(value) for name, value in given.items() if value not in (None, "")}
    if not given:
        return None
    if len(given) == 1:
        raise UnusableImageError(f"a DICOM file with {next(iter(given))} alone: the other half isn't there")
    slope, intercept = (given[name] for name in _NAMES)
    if not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0:
        raise UnusableImageError(f"a DICOM file of slope {slope:g} and intercept {intercept:g}: no numbers come of it")
    return slope, intercept


def _find_table(header: Any) -> Rescale:
    from pydicom.pixels.processing import apply_modality_lut

    bits = int(header.ModalityLUTSequence[0].LUTDescriptor[2])
    if bits not in (8, 16):
        raise UnusableImageError(f"a DICOM file with a modality LUT of {bits} bits: only 8 and 16 are read")

    def apply(numbers: np.ndarray, frame: int) -> np.ndarray:
        del frame
        return apply_modality_lut(numbers.astype(np.int64), header)  # signed: its first entry may stand for any number

    return Rescale(apply, f"uint{bits}", "numbers by its modality LUT")
