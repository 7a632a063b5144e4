"""Which layer the representation is taken from: from what a person writes to the one name an encoder understands.

The rule is byol-pytorch's: a dotted name, an index into the top-level children, or -1 for the network's output.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from byol_jax.errors import HiddenLayerNotFoundError, nearest

__all__ = ["OUTPUT", "FeatureLayout", "feature_layout", "resolve_hidden_layer", "top_level"]

OUTPUT = -1
"""The hidden layer that stands for the network's own output."""


def top_level(names: Sequence[str]) -> tuple[str, ...]:
    """The names without a dot: the children that an integer indexes."""
    return tuple(name for name in names if "." not in name)


def resolve_hidden_layer(names: Sequence[str], hidden_layer: Any) -> str | int:
    """A dotted name, or `OUTPUT`, from what the user asked for.

    Args:
        names: the encoder's hidden layers, in definition order.
        hidden_layer: a dotted name; an int other than -1, an index into the top-level children; or -1.

    Raises:
        HiddenLayerNotFoundError: no such name or index; the message lists those that exist, nearest first.

    Example:
        >>> resolve_hidden_layer(("conv1", "layer1", "layer1.0", "avgpool", "fc"), -2)
        'avgpool'
    """
    if type(hidden_layer) is int:
        if hidden_layer == OUTPUT:
            return OUTPUT
        children = top_level(names)
        if -len(children) <= hidden_layer < len(children):
            return children[hidden_layer]
    elif type(hidden_layer) is str and hidden_layer in names:
        return hidden_layer
    if not names:
        hint = "this encoder names no layers; use hidden_layer=-1, its output"
    else:
        children = top_level(names)
        known = nearest(hidden_layer, dict.fromkeys([*children, *names]) if isinstance(hidden_layer, int) else names)
        more = f" … ({len(names) - len(known)} more)" if len(names) > len(known) else ""
        hint = f"use one of {', '.join(known)}{more}, an index into the {len(children)} children, or -1"
    raise HiddenLayerNotFoundError(f"hidden layer {hidden_layer!r} not found: {hint}")


class FeatureLayout(NamedTuple):
    """What the numbers of one image's features are, which a learner has in one row.

    Attributes:
        shape: their axes in the row's order: (C, H, W) of a map, (T, D) of tokens, (D,) of a vector.
        axes: those axes, channels last: (1, 2, 0) of (C, H, W).
        is_guess: whether (H, W, C) is as likely, of a map that comes in torch's own order.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...]
    is_guess: bool = False


def feature_layout(shape: tuple[int, ...], *, of_torch: bool, image_shape: tuple[int, ...]) -> FeatureLayout:
    """The layout of a hidden output of one image.

    Every network here has its channels last; their maps are put into rows in torch's order, C·H·W. A traced module's
    output comes as torch has it: channels first, but for networks that compute with channels last (Swin's). Which of
    the two a map [a, b, c] is, the image's sides tell: [b, c] or [a, b] is in their proportion, or is a single pixel.
    Where both are, or neither, channels first is taken.

    Args:
        shape: the output's axes without the batch's, as the network gives them.
        of_torch: whether the network was traced from a torch module.
        image_shape: of one image, (H, W, C).

    Example:
        >>> feature_layout((4, 4, 32), of_torch=False, image_shape=(64, 64, 3))
        FeatureLayout(shape=(32, 4, 4), axes=(1, 2, 0), is_guess=False)
        >>> feature_layout((4, 4, 32), of_torch=True, image_shape=(64, 64, 3)).axes
        (0, 1, 2)
    """
    same = tuple(range(len(shape)))
    if not of_torch:
        return FeatureLayout((shape[2], *shape[:2]), (1, 2, 0)) if len(shape) == 3 else FeatureLayout(shape, same)
    if len(shape) < 3:
        return FeatureLayout(shape, same)
    first, last = (_in_proportion(sides, image_shape[:-1]) for sides in (shape[1:], shape[:-1]))
    if last and not first:
        return FeatureLayout(shape, same)
    return FeatureLayout(shape, (*same[1:], 0), is_guess=first and last)


def _in_proportion(sides: tuple[int, ...], image_sides: tuple[int, ...]) -> bool:
    """Whether a map's sides are to each other as the image's, give or take a rounded pixel; or it is a pixel."""
    if len(sides) != len(image_sides):
        return False
    scales = [image / side for side, image in zip(sides, image_sides, strict=True)]
    return max(sides) == 1 or max(scales) <= min(scales) * (1 + 1 / min(sides))
