"""What a person looks at: `views.png`, images beside their two views, which the network is asked to call the same, and
`neighbours.png`, images beside those that it finds alike.

Draws arrays with Pillow. Which images: artifacts.py, cli/commands/preview.py and cli/protocols.py; curves:
report/curves.py.
"""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from byol_jax.data.readers.pillow_header import DRAWN
from byol_jax.disk import write_atomically
from byol_jax.errors import DataError
from byol_jax.views import sample_views

__all__ = ["channels_shown", "neighbours_grid", "sample_grid", "say_shown", "views_grid"]

MAX_ROWS = 8
SMALLEST, LARGEST = 112, 256
"""Pixels of a cell's longer side: smaller images are enlarged by a whole factor, larger ones shrunk."""
GAP = 8
HEADER = 22
PAPER, INK = (250, 250, 248), (40, 40, 40)
SAME, OTHER = (43, 122, 75), (179, 55, 46)
FRAME = 3


def sample_grid(
    images: np.ndarray, augment_fn: Callable, augment_fn2: Callable, key: jax.Array, path: str | os.PathLike[str]
) -> None:
    """Draws both views of `images`, as a step with this key would, and writes `views_grid` of them.

    Args:
        images: [N, H, W, C], floating in [0, 1]; of more than three channels the first three are drawn as red, green
            and blue, of two the first as grey; the views are made of all.
        augment_fn, augment_fn2: of view 1 and view 2.
        key: the step's.
        path: as in `views_grid`, whose errors it raises too.
    """
    view1, view2 = jax.jit(lambda batch: sample_views(augment_fn, augment_fn2, batch, key))(jnp.asarray(images))
    shown = channels_shown(np.shape(images)[-1])
    images, view1, view2 = (np.asarray(part)[..., :shown] for part in (images, view1, view2))
    views_grid(images, view1, view2, path)


def channels_shown(channels: int) -> int:
    """How many of an image's channels, the first ones, stand for it in a picture."""
    return 3 if channels >= 3 else 1


def say_shown(channels: int, bands: Sequence[int] | None = None) -> str | None:
    """Which channels `sample_grid` draws of so many; None where it is all of them and none was chosen.

    Args:
        bands: of the files' own channels, those that were chosen.

    Example:
        >>> say_shown(5), say_shown(3, (3, 2, 1))
        ('drawn: channels 1, 2, 3 of 5 as red, green, blue', 'drawn: bands 3, 2, 1 as red, green, blue')
    """
    count = channels_shown(channels)
    if bands is None and count == channels:
        return None
    names = [str(number) for number in (bands or range(1, channels + 1))[:count]]
    what = f"{'band' if bands else 'channel'}{'s' * (count > 1)} {', '.join(names)}"
    return f"drawn: {what}{f' of {channels}' * (count < channels)} as {'red, green, blue' if count == 3 else 'grey'}"


def views_grid(images: Any, views1: Any, views2: Any, path: str | os.PathLike[str]) -> Path:
    """Writes a PNG with the columns original, view 1 and view 2, a row for each image.

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
    return _write(page, path)


def neighbours_grid(images: Any, neighbours: Mapping[str, tuple[Any, Any]], path: str | os.PathLike[str]) -> Path:
    """Writes a PNG with a row for each image: itself, then what each kind of features finds nearest, framed.

    Args:
        images: [N, H, W, C]; C = 1 or 3; uint8, or floating, clipped to [0, 1]; up to 8 rows are drawn.
        neighbours: heading to (images [N, k, H, W, C], [N, k] bool): the frame is green where True, the same class,
            and red elsewhere.
        path: the file to write; an old one is replaced in one instant.

    Returns:
        The path.

    Raises:
        DataError: another rank, channel count or dtype.

    Example:
        >>> import tempfile
        >>> grey = np.zeros((2, 3, 28, 28, 1))
        >>> path = f"{tempfile.mkdtemp()}/neighbours.png"
        >>> with Image.open(neighbours_grid(grey[:, 0], {"mine": (grey, np.ones((2, 3), bool))}, path)) as picture:
        ...     picture.size
        (496, 270)
    """
    blocks: list[tuple[str, list[list[Image.Image]], Any]] = [
        ("image", [[_cell(image)] for image in _as_bytes(np.asarray(images)[:MAX_ROWS], "images")], None)
    ]
    for heading, (nearest, alike) in neighbours.items():
        rows = [[_cell(image) for image in _as_bytes(row, heading)] for row in np.asarray(nearest)[:MAX_ROWS]]
        blocks.append((heading, rows, np.asarray(alike)))
    cells = [cell for _, rows, _ in blocks for row in rows for cell in row]
    width, height = (max(side) for side in zip(*(cell.size for cell in cells), strict=True))
    columns = sum(len(rows[0]) for _, rows, _ in blocks)
    gaps = GAP * (1 + columns + len(blocks) - 1)
    page = Image.new("RGB", (gaps + columns * width, HEADER + GAP + len(blocks[0][1]) * (height + GAP)), PAPER)
    draw, left = ImageDraw.Draw(page), GAP
    for heading, rows, alike in blocks:
        draw.text((left, GAP + HEADER / 2), heading, fill=INK, font=ImageFont.load_default(size=14), anchor="lm")
        for row, line in enumerate(rows):
            for column, cell in enumerate(line):
                x, y = left + column * (width + GAP), HEADER + GAP + row * (height + GAP)
                page.paste(cell, (x + (width - cell.width) // 2, y + (height - cell.height) // 2))
                if alike is not None:
                    corners = (x - FRAME, y - FRAME, x + width + FRAME - 1, y + height + FRAME - 1)
                    draw.rectangle(corners, outline=SAME if alike[row, column] else OTHER, width=FRAME)
        left += len(rows[0]) * (width + GAP) + GAP
    return _write(page, path)


def _write(page: Image.Image, path: str | os.PathLike[str]) -> Path:
    content, mark = io.BytesIO(), PngImagePlugin.PngInfo()
    mark.add_text(*DRAWN)  # beside images, it isn't taken for one of them
    page.save(content, format="PNG", pnginfo=mark)
    write_atomically(Path(path), content.getvalue())
    return Path(path)


def _as_bytes(array: Any, name: str) -> np.ndarray:
    """As uint8 [N, H, W, C]."""
    array = np.asarray(array)
    if array.ndim != 4 or array.shape[-1] not in (1, 3) or 0 in array.shape:
        raise DataError(f"{name} has shape {array.shape}: expected [N, H, W, C] with 1 or 3 channels")
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
