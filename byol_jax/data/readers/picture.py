"""Pictures that Pillow decodes, as somebody's `Reading` wants them: converted to grey or colour, or as they are stored.

As they are stored they have one channel, grey, or three, colour on white: transparency is no channel.
"""

from pathlib import Path

import numpy as np

from byol_jax.data.member import Member
from byol_jax.data.readers.pillow import read_image
from byol_jax.data.readers.pillow_header import Depth, check_header, count_colours, upright_size
from byol_jax.data.readers.reading import Contents, Reading, check_contents, choose_channels

__all__ = ["WHOLE", "check_picture", "read_picture"]

WHOLE = (Depth.GREY, Depth.COLOUR)
"""Of 16 bits a channel all are had."""


def check_picture(path: Path | Member, reading: Reading) -> Depth:
    """How many bits a channel a picture has; nothing is decoded.

    Raises:
        UnusableImageError: as `check_header`; or, where channels are taken as they are, it hasn't those asked for.
    """
    depth = check_header(path)
    if reading.is_as_stored:
        dtype = "uint16" if depth in WHOLE else "uint8"
        check_contents(Contents((upright_size(path),), count_colours(path), dtype), reading, most_pixels=None)
    return depth


def read_picture(
    path: Path | Member, reading: Reading, *, size: tuple[int, int] | None, fit: str, dtype: str
) -> np.ndarray:
    """A picture as `read_image` gives it, `dtype` [h, w, C]; in float32 with the numbers of its own depth.

    Raises:
        UnusableImageError: as `read_image`.
    """
    own = dtype
    if dtype == "float32":
        own = "uint16" if check_header(path) in WHOLE else "uint8"
    channels = count_colours(path) if reading.is_as_stored else reading.num_channels
    image = read_image(path, size=size, num_channels=channels, fit=fit, dtype=np.dtype(own))
    return (choose_channels(image, reading) if reading.is_as_stored else image).astype(dtype, copy=False)
