"""DeepMind's released checkpoints: Haiku's names and layouts to a training state. They are read, not written.

    online_params/<net>/~/block_group_0/~/block_1/~/conv_2/w       online.encoder.layer1.1.conv3.weight
    online_state/<norm>/~/mean_ema/{average, counter}              <norm>.{running_mean, num_batches_tracked}
    online_params/projector/{linear, batch_norm, linear_1}/…       online.projector.{0, 1, 3}.…
    online_params/classifier/{w, b}                                online.encoder.fc.…

The target's predictor and classifier are averages that nothing uses; the predictor is left out. So are the optimiser's
state, step and random key. A file of basic blocks doesn't tell which convolution has the stride: Haiku had it on the
second one until 22 December 2020, where no network here has it. Source: google-deepmind/deepmind-research, byol/, and
dm-haiku's `nets/resnet.py`.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np

from byol_jax.errors import CheckpointFormatError
from interop.arrays import as_numpy
from interop.learners.fitting import PaddingWarning, load_networks
from interop.learners.library import Difference, Library, Origin

__all__ = ["LIBRARY", "flat_names", "is_experiment", "recognises", "translate_leaf"]

TREES = {
    "online_params": "online",
    "online_state": "online",
    "target_params": "target",
    "target_state": "target",
    "backbone_params": "online",
    "backbone_state": "online",
    "classif_params": "classifier",
}
"""Fields of the experiment's named tuple: pre-training's, and linear evaluation's, whose backbone is the whole online
tree and whose classifier was trained anew."""

ENCODER = re.compile(
    r"[^/]+/~/(?:initial_(?P<initial>conv|batchnorm)(?:_1)?"
    r"|block_group_(?P<group>\d+)/~/block_(?P<block>\d+)/~/"
    r"(?:(?P<kind>conv|batchnorm)_(?P<index>\d+)|shortcut_(?P<shortcut>conv|batchnorm)))"
)
HEAD = re.compile(r"(?P<head>projector|predictor)/(?P<layer>linear|batch_norm|linear_1)")
LAYERS = {"linear": "0", "batch_norm": "1", "linear_1": "3"}
STATISTICS = {"mean_ema": "running_mean", "var_ema": "running_var"}

BIASLESS = ("projector.3.bias", "predictor.3.bias")
"""The heads' second linear layer has no bias in DeepMind's code."""

SHORTCUT = (
    "DeepMind's networks have a shortcut with weights in every stage's first block, and pad as TensorFlow: make the "
    'network with nets.resnet(..., shortcut="always", padding="same")'
)

SIZES = "0.56 at 64 pixels, 0.18 at 224, none at 65 or 225 (a multiple of 32 and one more)"
"""Relative L2 difference of a ResNet-50's embeddings, untrained weights; docs/parity.md has measured ones."""

PADDING = Difference(
    PaddingWarning,
    "padding SAME",
    "was trained with TensorFlow's padding (SAME), the network pads as torchvision's: embeddings are off by about "
    f'{SIZES}, relatively; nets.resnet(..., padding="same") computes the same',
    padding="same",
    unsettled="was trained with TensorFlow's padding (SAME): features agree only if the network pads so, as "
    f'nets.resnet(..., padding="same") does; with torchvision\'s padding embeddings are off by about {SIZES}, '
    "relatively",
)


def is_experiment(content: Any) -> bool:
    """Whether this is what DeepMind's pickle holds."""
    return isinstance(content, Mapping) and "experiment_state" in content


def flat_names(content: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """The trees of a checkpoint as one dict, tree, module and leaf joined by "/"; the optimiser's are left out.

    Args:
        content: what the pickle held, the named tuple as itself or as a dict.

    Raises:
        CheckpointFormatError: other trees than module → leaf → array.

    Example:
        >>> leaf = {"classifier": {"b": np.zeros(2)}}
        >>> list(flat_names({"experiment_state": {"online_params": leaf}}, where="x"))
        ['online_params/classifier/b']
    """
    experiment = content["experiment_state"]
    fields = experiment._asdict() if hasattr(experiment, "_asdict") else experiment
    if not isinstance(fields, Mapping):
        raise CheckpointFormatError(f"{where}: experiment_state is a {type(fields).__name__}, not a named tuple")
    flat = {}
    for tree in TREES:
        modules = fields.get(tree) or {}  # an absent tree may be None
        if not all(isinstance(leaves, Mapping) for leaves in _values(modules, tree, where)):
            raise CheckpointFormatError(f"{where}: {tree} isn't module → leaf → array")
        flat |= {
            f"{tree}/{module}/{leaf}": array for module, leaves in modules.items() for leaf, array in leaves.items()
        }
    return flat


def _values(modules: Any, tree: str, where: str) -> Collection[Any]:
    if not isinstance(modules, Mapping):
        raise CheckpointFormatError(f"{where}: {tree} is a {type(modules).__name__}, not a dict of modules")
    return modules.values()


def recognises(keys: Collection[str]) -> bool:
    """Whether these are names that `flat_names` makes.

    Example:
        >>> recognises(["online_params/classifier/b"])
        True
    """
    return any(key.startswith(("online_params/", "backbone_params/")) for key in keys)


def from_state_dict(state_dict: Mapping[str, Any], *, like: Any, where: str) -> Any:
    """`like` with the networks of one of DeepMind's files, under the names of `flat_names`.

    Raises:
        CheckpointFormatError: pre-activation networks, or a learner with other heads.
        StateDictMismatchError: lists everything that doesn't fit.
    """
    if not recognises(state_dict):
        raise CheckpointFormatError(f"{where}: no experiment of DeepMind's: expected online_params or backbone_params")
    if any("/~/final_batchnorm/" in key for key in state_dict):
        raise CheckpointFormatError(
            f"{where}: a pre-activation ResNet (its batch norms stand before the convolutions); only the "
            "post-activation ones, which the released files hold, can be loaded"
        )
    given: dict[str, np.ndarray] = {}
    for key, value in state_dict.items():
        for name, array in translate_leaf(key, as_numpy(value, key)):
            if name in given:
                raise CheckpointFormatError(f"{where}: {key} and another leaf would both be {name}")
            given[name] = array
    for leaf in ("weight", "bias"):  # linear evaluation's classifier takes the old one's place
        if f"classifier.{leaf}" in given:
            given[f"online.encoder.fc.{leaf}"] = given.pop(f"classifier.{leaf}")
    return load_networks(given, like=like, library="DeepMind", where=where, biasless=BIASLESS, hint=SHORTCUT)


def to_state_dict(state: Any, *, layout: str, where: str) -> dict[str, np.ndarray]:
    """Raises CheckpointFormatError: this format is only read."""
    raise CheckpointFormatError(f"{where}: DeepMind's format is a pickle and isn't written; use another layout")


def translate_leaf(key: str, array: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """The names and arrays that one leaf becomes: none, or one. An unknown one keeps its name."""
    tree, _, path = key.partition("/")
    module, _, leaf = path.rpartition("/")
    module, _, average = module.rpartition("/~/") if module.endswith(tuple(STATISTICS)) else (module, "", "")
    layer = _layer(module, TREES[tree]) if tree in TREES else None
    if layer is None:
        yield key, array
    elif layer.startswith("target.predictor"):
        return
    elif average:
        if leaf == "average":
            yield f"{layer}.{STATISTICS[average]}", array.reshape(-1)
        elif leaf == "counter" and average == "mean_ema":  # twice a step, as both views are counted
            yield f"{layer}.num_batches_tracked", array
    elif leaf == "w":
        orders = {4: (3, 2, 0, 1), 2: (1, 0)}  # anything else will be of the wrong shape
        yield f"{layer}.weight", array.transpose(orders.get(array.ndim))
    elif leaf in ("scale", "offset"):
        yield f"{layer}.{'weight' if leaf == 'scale' else 'bias'}", array.reshape(-1)
    else:
        yield (f"{layer}.bias" if leaf == "b" else key), array


def _layer(module: str, network: str) -> str | None:
    """Our name of a Haiku module without its leaf; None where there is none."""
    if network == "classifier":
        return "classifier"
    if module == "classifier":
        return f"{network}.encoder.fc"
    if head := HEAD.fullmatch(module):
        return f"{network}.{head['head']}.{LAYERS[head['layer']]}"
    found = ENCODER.fullmatch(module)
    if found is None:
        return None
    if found["initial"]:
        return f"{network}.encoder.{'conv1' if found['initial'] == 'conv' else 'bn1'}"
    block = f"{network}.encoder.layer{int(found['group']) + 1}.{int(found['block'])}"
    if found["shortcut"]:
        return f"{block}.downsample.{'0' if found['shortcut'] == 'conv' else '1'}"
    return f"{block}.{'conv' if found['kind'] == 'conv' else 'bn'}{int(found['index']) + 1}"


def origin(keys: Collection[str]) -> Origin:
    """Whose the names of `flat_names` are."""
    names, left_out = {}, {}
    evaluation = any(key.startswith("classif_params/") for key in keys)
    for key in keys:
        found = [name for name, _ in translate_leaf(key, np.zeros((1, 1, 1, 1) if key.endswith("/w") else 1))]
        if not found:
            target = key.startswith(("target_params/predictor", "target_state/predictor"))
            left_out[key] = "the target's predictor, which nothing uses" if target else "a running average's own state"
        elif found[0] != key:
            names[key] = found[0]
    for leaf in ("weight", "bias"):  # linear evaluation's classifier takes the old one's place
        names = {
            key: f"online.encoder.fc.{leaf}" if ours == f"classifier.{leaf}" else ours for key, ours in names.items()
        }
    return Origin(f"DeepMind's {'linear evaluation' if evaluation else 'pre-training'}", names, left_out)


def _torch_array(key: str, array: np.ndarray) -> np.ndarray:
    ((_, array),) = translate_leaf(key, array)
    return array


LIBRARY = Library(
    layouts=(),  # nothing is written in this format: it can't be, without pickling
    recognises=recognises,
    origin=origin,
    from_state_dict=from_state_dict,
    to_state_dict=to_state_dict,
    torch_array=_torch_array,
    difference=lambda state_dict: PADDING,
    biasless=BIASLESS,
)
