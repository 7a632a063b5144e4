"""An encoder's tensors by torch's names, native or traced, and which of them are its classifier."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from interop.arrays import as_numpy
from interop.weights.architectures import is_head, recognise
from interop.weights.first_layer import shapes_of
from interop.weights.mismatch import Mismatch
from interop.weights.names import Leaf, named_leaves, torch_names, whole_shape
from interop.weights.packing import whole_key
from interop.weights.state_dict import classifier_differences, to_torch_array

if TYPE_CHECKING:
    from byol_jax.types import Encoder, Variables

__all__ = ["EncoderTensor", "body_of", "classifier_advice", "encoder_tensors", "with_own_classifier"]

POSITIONS = "encoder.pos_embedding"
"""A vision transformer's: one for each patch of its images, and one more."""

SMALL_CNN_CLASSIFIER = ("10.weight", "10.bias")
"""Of `byol_jax.nets.small_cnn`, whose layers have numbers."""


class EncoderTensor(NamedTuple):
    """A tensor of an encoder's.

    Attributes:
        leaf: an array, or a shape alone; of a tensor that is several leaves here, one of them.
        rule: as in `names.Leaf`.
        shape: the tensor's in torch.
    """

    leaf: Any
    rule: str
    shape: tuple[int, ...]


def encoder_tensors(encoder: "Encoder", like: "Variables") -> dict[str, EncoderTensor]:
    """The tensors that a state dict of this encoder has, by its names.

    Args:
        encoder: any encoder with torch's names.
        like: its variables, arrays or shapes alone.
    """
    leaves = named_leaves(like)
    if encoder.facts.traced is None:
        names = {whole_key(name.key): (path, name) for path, name in torch_names(leaves).items()}
    else:
        places = {key: leaf for key, (leaf, _) in encoder.facts.traced.state_dict.items()}
        names = {key: (leaf.replace(".", "/"), Leaf(leaf, "")) for key, leaf in places.items()}
    return {
        key: EncoderTensor(leaves[path], name.rule, whole_shape(name, tuple(leaves[path].shape)))
        for key, (path, name) in names.items()
    }


def body_of(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """What of a network is the same for any number of classes and for images of any size.

    Example:
        >>> body_of({"conv1.weight": (64, 3, 7, 7), "fc.weight": (10, 512)})
        {'conv1.weight': (64, 3, 7, 7)}
    """
    return {name: shape for name, shape in shapes.items() if not is_head(name) and name != POSITIONS}


def with_own_classifier(network: Mapping[str, np.ndarray], own: Mapping[str, EncoderTensor]) -> dict[str, np.ndarray]:
    """A state dict with the encoder's own classifier where it has none of that width, and with no other classifier.

    Args:
        network: an encoder's state dict.
        own: the encoder's tensors; of a classifier without values nothing is taken.
    """
    kept = {name: array for name, array in network.items() if name in own or not is_head(name)}
    classifier = _classifier_names(own)
    fits = all(name in kept and kept[name].shape == own[name].shape for name in classifier)
    if fits or not all(hasattr(own[name].leaf, "__array__") for name in classifier):
        return kept
    return kept | {name: to_torch_array(as_numpy(own[name].leaf, name), own[name].rule) for name in classifier}


def _classifier_names(own: Mapping[str, EncoderTensor]) -> Collection[str]:
    """Those of a network's classifier, as far as they tell."""
    heads = [name for name in own if is_head(name)]
    is_small_cnn = not heads and recognise({name: one.shape for name, one in own.items()}) == "small_cnn"
    return [name for name in SMALL_CNN_CLASSIFIER if name in own] if is_small_cnn else heads


def classifier_advice(mismatch: Mismatch, state_dict: Mapping[str, Any]) -> list[str]:
    """What to do where a native network fits a state dict but for its classifier.

    Example:
        >>> classifier_advice(Mismatch(missing=["fc.weight", "fc.bias"]), {})
        ['only the classifier differs: num_classes=None makes the network with that of the file']
    """
    if not classifier_differences(mismatch):
        return []
    heads = [shape for name, shape in shapes_of(state_dict).items() if is_head(name) and len(shape) == 2]
    classes = heads[0][0] if heads else None
    return [f"only the classifier differs: num_classes={classes} makes the network with that of the file"]
