"""Which layer the representation is taken from: from what a person writes to the one name an encoder understands.

The rule is byol-pytorch's: a dotted name, an index into the top-level children, or -1 for the network's output.
"""

from collections.abc import Sequence
from typing import Any

from byol_jax.errors import HiddenLayerNotFoundError, nearest

__all__ = ["OUTPUT", "resolve_hidden_layer", "top_level"]

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
