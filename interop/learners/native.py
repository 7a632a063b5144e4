"""What `nets.resnet` computes otherwise than the network whose weights it takes, where neither names nor shapes refuse.

Traced networks compute what their own code says, so none of this concerns them.
"""

import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

from interop.learners.cut_names import FIRST_STAGE
from interop.learners.fitting import PaddingWarning, StemWarning
from interop.learners.states import state_leaves

__all__ = ["Difference", "native_difference", "warn_of_difference"]


class Difference(NamedTuple):
    """The warning's category, a few words for a list of details, and a sentence that says what to do."""

    category: type[Warning]
    detail: str
    sentence: str


DEEPMIND = Difference(
    PaddingWarning,
    "padding SAME",
    "was trained with TensorFlow's padding (SAME), the network pads as torchvision's: features differ, but for images "
    'whose sides are a multiple of 32 and one more; nets.resnet(..., padding="same") computes the same',
)
SOLO_LEARN = Difference(
    PaddingWarning,
    "stem padded by 2",
    "solo-learn pads its 3×3 stem by 2 pixels, nets.resnet by 1, and no file tells: give the network images that are "
    "padded by one more zero on every side (after normalisation), and it computes the same",
)
LIGHTLY = Difference(
    StemWarning,
    "no ReLU behind the stem",
    "lightly's network for CIFAR has no ReLU behind its stem where it is cut as in lightly's examples, nets.resnet has "
    "one: features are far off; interop.from_torch_module of the cut network computes the same",
)


def native_difference(library: str, state_dict: Mapping[str, Any]) -> Difference | None:
    """What a native network would compute otherwise; None where nothing is known.

    Args:
        library: whose learner it is, as `learners.SOURCES` calls it.
        state_dict: the library's names, nothing in front of them, to anything with a `shape`.

    Example:
        >>> import numpy as np
        >>> native_difference("lightly", {"backbone.2.0.conv1.weight": np.zeros((4, 4, 3, 3))}).detail
        'no ReLU behind the stem'
        >>> native_difference("lightly", {"backbone.4.0.conv1.weight": np.zeros((4, 4, 3, 3))})
    """
    if library == "deepmind":
        return DEEPMIND
    if library == "lightly":
        return LIGHTLY if f"backbone.{FIRST_STAGE['lightly']}.0.conv1.weight" in state_dict else None
    stems = [state_dict[key] for key in ("backbone.conv1.weight", "encoder.conv1.weight") if key in state_dict]
    small = any(tuple(stem.shape[2:]) == (3, 3) for stem in stems)
    return SOLO_LEARN if library == "solo_learn" and small else None


def warn_of_difference(difference: Difference | None, *, state: Any, where: str, stacklevel: int = 4) -> None:
    """Says it if `state`'s encoder is one of `nets.resnet`'s that computes otherwise.

    Args:
        state: a `TrainState`.
        where: the file, in front of the sentence.
        stacklevel: whom it is said to, as in `warnings.warn`: who calls `load_byol_checkpoint`.

    Raises:
        StateDictMismatchError: there is a difference, and `state` is no `TrainState`.
    """
    if difference is None:
        return
    native = "online/encoder/conv1/kernel" in state_leaves(state)
    same = "same" in state.online.stats.get("encoder", {}).get("padding", {})
    if native and not (same and difference is DEEPMIND):
        warnings.warn(difference.category(f"{where}: {difference.sentence}"), stacklevel=stacklevel)
