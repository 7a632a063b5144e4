"""DICOM files, read by pydicom: one image or many frames, the numbers as they are stored.

Slope and intercept (Hounsfield units, of CT), or a modality LUT in their place, are applied only where it is asked
for (rescale.py), a window never. MONOCHROME1, in which the least number is white, is turned round within the range of
its stored bits, so that all grey files agree. YBR becomes RGB. Palettes and single bits are refused; compressed pixels
need a decoder that pydicom finds.
"""

from pathlib import Path
from typing import Any

import numpy as np

from byol_jax.data.readers.reading import Contents, Opened, Reading
from byol_jax.data.readers.rescale import AS_STORED, find_rescale
from byol_jax.data.unusable import UnusableImageError
from byol_jax.errors import one_line

__all__ = ["open_dicom"]

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_FLOATS = {"FloatPixelData": "float32", "DoubleFloatPixelData": "float64"}


def open_dicom(path: Path, reading: Reading) -> Opened:
    """A DICOM file; its frames are decoded when they are read.

    Raises:
        UnusableImageError: no pixels, or such as can't be read rightly.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError
    from pydicom.pixels.utils import pixel_array

    try:
        header = pydicom.dcmread(path, defer_size=1024)  # large elements, pixels among them, stay in the file
    except InvalidDicomError as error:
        raise UnusableImageError("not a DICOM file, or damaged at its start") from error
    kind = str(header.get("PhotometricInterpretation", ""))
    if "Rows" not in header or not (kind in _GREY or kind in _COLOUR):
        what = f"a DICOM file of {kind[:20]}" if kind else "a DICOM file without an image"
        raise UnusableImageError(f"{what}: only {', '.join((*_GREY, *_COLOUR))} are read")
    stored = _stored_dtype(header)
    frames = int(header.get("NumberOfFrames") or 1)
    rescale = find_rescale(header, frames) if reading.dicom_rescale else AS_STORED
    is_inverted = kind == "MONOCHROME1"
    if is_inverted and rescale.dtype is not None:
        raise UnusableImageError(
            "a DICOM file of MONOCHROME1 with slope and intercept, or a modality LUT: which end is white isn't known"
        )
    size = (int(header.Rows), int(header.Columns))
    channels = 1 if kind in _GREY else 3
    contents = Contents((size,) * frames, channels, rescale.dtype or stored, _say(frames, rescale.said))

    def read(index: int) -> np.ndarray:
        try:
            numbers = pixel_array(path, index=index)
        except RuntimeError as error:  # no decoder, or none that could
            raise UnusableImageError(f"its pixels, {_syntax(header)}, can't be decoded: {one_line(error)}") from error
        numbers = numbers.reshape(*size, channels)
        if is_inverted:
            signed, bits = numbers.dtype.kind == "i", int(header.BitsStored)
            numbers = np.asarray(-1 if signed else 2**bits - 1, numbers.dtype) - numbers
        return rescale.apply(numbers, index)

    return Opened(contents, read, close=lambda: None)


def _say(frames: int, rescaled: str | None) -> str | None:
    said = [f"{frames} frames: as many images"] if frames > 1 else []
    return "; ".join([*said, *([rescaled] if rescaled else [])]) or None


def _stored_dtype(header: Any) -> str:
    for name, dtype in _FLOATS.items():
        if name in header:
            return dtype
    if "PixelData" not in header:
        raise UnusableImageError("a DICOM file without pixels")
    bits, kind = int(header.get("BitsAllocated", 0)), "int" if header.get("PixelRepresentation") == 1 else "uint"
    if bits not in (8, 16, 32):
        raise UnusableImageError(f"a DICOM file of {bits}-bit numbers: only 8, 16 and 32 bits are read")
    return f"{kind}{bits}"


def _syntax(header: Any) -> str:
    """The transfer syntax by its name: "JPEG 2000 Image Compression", for one."""
    syntax = getattr(getattr(header, "file_meta", None), "TransferSyntaxUID", "of an unknown transfer syntax")
    return str(getattr(syntax, "name", syntax))
