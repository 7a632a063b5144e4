"""`views.png`: images beside their two views, so that a person sees what the network is asked to call the same.

Draws arrays with Pillow. Which images: artifacts.py and cli/preview.py; curves of numbers: report/curves.py.
"""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from byol_jax.data.decode import DRAWN
from byol_jax.disk import write_atomically
from byol_jax.errors import DataError
from byol_jax.views import sample_views

__all__ = ["sample_grid", "views_grid"]

MAX_ROWS = 8
SMALLEST, LARGEST = 112, 256
"""Pixels of a cell's longer side: smaller images are enlarged by a whole factor, larger ones shrunk."""
GAP = 8
HEADER = 22
PAPER, INK = (250, 250, 248), (40, 40, 40)


def sample_grid(
    images: np.ndarray, augment_fn: Callable, augment_fn2: Callable, key: jax.Array, path: str | os.PathLike[str]
) -> None:
    """Draws both views of `images`, as a step with this key would, and writes `views_grid` of them.

    Args:
        images: [N, H, W, C], uint8, or floating in [0, 1].
        augment_fn, augment_fn2: of view 1 and view 2.
        key: the step's.
        path: as in `views_grid`, whose errors it raises too.
    """
    floats = jnp.asarray(images, jnp.float32) / (255 if images.dtype == np.uint8 else 1)
    view1, view2 = jax.jit(lambda batch: sample_views(augment_fn, augment_fn2, batch, key))(floats)
    views_grid(images, view1, view2, path)


def views_grid(images: Any, views1: Any, views2: Any, path: str | os.PathLike[str]) -> Path:
    """Writes a PNG with the columns original, view 1 and view 2, up to 8 rows.

    Args:
        images, views1, views2: [N, H, W, C], each with its own H and W; C = 1 or 3; uint8, or floating, clipped to
            [0, 1].
        path: the file to write; an old one is replaced in one instant.

    Returns:
        The path.

    Raises:
        DataError: another rank, channel count or dtype, or different N.

    Example:
        >>> import tempfile
        >>> folder, grey = tempfile.mkdtemp(), np.zeros((2, 28, 28, 1))
        >>> with Image.open(views_grid(grey, grey, grey, f"{folder}/views.png")) as picture:
        ...     picture.size
        (368, 270)
    """
    columns = {
        name: [_cell(image) for image in _as_bytes(array, name)]
        for name, array in (("original", images), ("view 1", views1), ("view 2", views2))
    }
    counts = {name: len(np.asarray(array)) for name, array in zip(columns, (images, views1, views2), strict=True)}
    if len(set(counts.values())) != 1:
        raise DataError(f"different numbers of images: {counts}; expected a pair of views for each image")
    width = max(cell.width for cells in columns.values() for cell in cells)
    height = max(cell.height for cells in columns.values() for cell in cells)
    rows = len(columns["original"])
    page = Image.new("RGB", (GAP + 3 * (width + GAP), HEADER + GAP + rows * (height + GAP)), PAPER)
    draw = ImageDraw.Draw(page)
    for column, (name, cells) in enumerate(columns.items()):
        left = GAP + column * (width + GAP)
        draw.text(
            (left + width / 2, GAP + HEADER / 2), name, fill=INK, font=ImageFont.load_default(size=14), anchor="mm"
        )
        for row, cell in enumerate(cells):
            top = HEADER + GAP + row * (height + GAP)
            page.paste(cell, (left + (width - cell.width) // 2, top + (height - cell.height) // 2))
    content, mark = io.BytesIO(), PngImagePlugin.PngInfo()
    mark.add_text(*DRAWN)  # beside images, it isn't taken for one of them
    page.save(content, format="PNG", pnginfo=mark)
    write_atomically(Path(path), content.getvalue())
    return Path(path)


def _as_bytes(array: Any, name: str) -> np.ndarray:
    """The first rows as uint8 [n, H, W, C]."""
    array = np.asarray(array)
    if array.ndim != 4 or array.shape[-1] not in (1, 3) or 0 in array.shape:
        raise DataError(f"{name} has shape {array.shape}: expected [N, H, W, C] with 1 or 3 channels")
    array = array[:MAX_ROWS]
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind != "f":
        raise DataError(f"{name} has dtype {array.dtype}: expected uint8, or floating point in [0, 1]")
    return np.rint(np.clip(np.nan_to_num(array.astype(np.float32)), 0, 1) * 255).astype(np.uint8)


def _cell(image: np.ndarray) -> Image.Image:
    """One image [H, W, C] at a size that can be seen."""
    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).convert("RGB")
    longer = max(picture.size)
    if longer < SMALLEST:
        factor = -(-SMALLEST // longer)
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    if longer > LARGEST:
        width, height = (max(1, round(side * LARGEST / longer)) for side in picture.size)
        return picture.resize((width, height), Image.Resampling.LANCZOS)
    return picture
