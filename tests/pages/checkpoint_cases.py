"""The rows of docs/checkpoints.md: another library's learner or network, ours beside it, and both ways between them.

byol-pytorch, torchvision and timm are the libraries themselves; lightly's and solo-learn's learners are written from
their names (tests/interop/plain_learners.py), DeepMind's are its own files with the outputs of its own code.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
import torchvision
from torch import nn

import interop
from byol_jax import Learner, make_learner, nets
from interop.weights.architectures import expected_shapes
from tests.interop import deepmind_files
from tests.interop.plain_learners import Lightly, SoloLearn, cut, lightly_cifar, resnet

__all__ = ["CASES", "IMAGES", "MANY_IMAGES", "Case", "Learners", "Networks", "Recorded", "torch_batch"]

SIZE = 32
MANY_IMAGES = np.random.default_rng(0).random((32, SIZE, SIZE, 3))
IMAGES = MANY_IMAGES[:4]
HEADS = {"projection_size": 16, "projection_hidden_size": 24}
Outputs = dict[str, np.ndarray]


class Learners(NamedTuple):
    """A whole learner.

    Attributes:
        theirs: makes their module.
        outputs: their module's features and projections of both networks, of images [N, C, H, W], in evaluation.
        ours: makes the learner that reads the file.
        layout: what `save_byol_checkpoint` writes for it; None where it writes none that is like it.
        renamed: their state dict as an older release has it.
    """

    theirs: Callable[[], nn.Module]
    outputs: Callable[[Any, torch.Tensor], dict[str, torch.Tensor]]
    ours: Callable[[], Learner]
    layout: str | None
    renamed: Callable[[dict[str, Any]], dict[str, Any]] = dict


class Networks(NamedTuple):
    """A network by itself: `theirs` makes it, `ours` the encoder; `arch` is its name where keys are written."""

    theirs: Callable[[], nn.Module]
    ours: Callable[[], Any]
    arch: str


class Recorded(NamedTuple):
    """One of DeepMind's files by name, and the outputs that DeepMind's code gave."""

    name: str


class Case(NamedTuple):
    """A row of the page: whose file, of which network."""

    source: str
    network: str
    kind: Learners | Networks | Recorded


def torch_batch(images: np.ndarray) -> torch.Tensor:
    """[N, H, W, C] as torch has it, [N, C, H, W]."""
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def _byol_pytorch(net: Callable[[], nn.Module], layer: str | int = "avgpool") -> nn.Module:
    from byol_pytorch import BYOL

    options: Any = {"hidden_layer": layer, "use_simplicial_embeddings": False, "sync_batchnorm": False, **HEADS}
    module = BYOL(net(), image_size=SIZE, augment_fn=nn.Identity(), **options)
    module(torch_batch(IMAGES).float())  # makes the target network, and the heads' sizes
    return module


def _byol_pytorch_outputs(module: Any, images: torch.Tensor) -> dict[str, torch.Tensor]:
    online, features = module.online_encoder(images)
    target, target_features = module.target_encoder(images)
    return {"features": features, "projection": online, "target": target_features, "target projection": target}


def _parts_outputs(names: Mapping[str, str], module: Any, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a learner whose networks and heads are children with these names."""
    online, target = (module.get_submodule(names[which])(images).flatten(1) for which in ("online", "target"))
    heads = {which: module.get_submodule(names[f"{which} head"]) for which in ("online", "target")}
    projections = heads["online"](online), heads["target"](target)
    return {"features": online, "projection": projections[0], "target": target, "target projection": projections[1]}


LIGHTLY = partial(
    _parts_outputs,
    {
        "online": "backbone",
        "online head": "projection_head",
        "target": "backbone_momentum",
        "target head": "projection_head_momentum",
    },
)
SOLO = partial(
    _parts_outputs,
    {
        "online": "backbone",
        "online head": "projector",
        "target": "momentum_backbone",
        "target head": "momentum_projector",
    },
)


def _without_fc(name: str) -> nn.Module:
    module = torchvision.models.get_model(name)
    module.fc = nn.Identity()
    return module


def _ours(encoder: Callable[[], Any], layer: str | int = "avgpool") -> Callable[[], Learner]:
    def make() -> Learner:
        unchanged = {"augment_fn": lambda key, image: image, "dtype": "float64"}
        return make_learner(encoder(), image_size=SIZE, hidden_layer=layer, **unchanged, **HEADS)

    return make


def _without_duplicates(state_dict: dict[str, Any]) -> dict[str, Any]:
    """As byol-pytorch learners are often saved: the network once only."""
    return {key: tensor for key, tensor in state_dict.items() if not key.startswith("net.")}


def _traced(net: Callable[[], nn.Module]) -> Callable[[], Any]:
    return lambda: interop.from_torch_module(net(), image_size=SIZE, verify=False)


def _mobilenet() -> nn.Module:
    return torchvision.models.mobilenet_v3_small(num_classes=5)


TINY_VIT = {"width": 192, "num_heads": 3, "patch_size": 16}


def _torch_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(SIZE, 16, 12, 3, 192, 768)


def _native(name: str) -> Callable[[], Any]:
    return getattr(nets, name)


def _torchvision(name: str) -> Callable[[], nn.Module]:
    return partial(torchvision.models.get_model, name)


def _pure_byol(name: str) -> Learners:
    theirs = partial(_byol_pytorch, _torchvision(name))
    return Learners(theirs, _byol_pytorch_outputs, _ours(_native(name)), "byol_pytorch")


def _lightly(name: str) -> Learners:
    features = expected_shapes(name)["fc.weight"][1]
    theirs = lambda: Lightly(cut(_torchvision(name)()), features=features)  # noqa: E731
    return Learners(theirs, LIGHTLY, _ours(lambda: _native(name)(num_classes=None)), "lightly")


def _solo(name: str) -> Learners:
    features = expected_shapes(name)["fc.weight"][1]
    theirs = lambda: SoloLearn(_without_fc(name), features=features)  # noqa: E731
    return Learners(theirs, SOLO, _ours(lambda: _native(name)(num_classes=None)), "solo_learn")


RESNETS = ("resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d")

CASES = (
    *(Case("byol-pytorch 0.9.1", name, _pure_byol(name)) for name in RESNETS),
    Case(
        "byol-pytorch 0.9.1",
        "mobilenet_v3_small, traced",
        Learners(partial(_byol_pytorch, _mobilenet), _byol_pytorch_outputs, _ours(_traced(_mobilenet)), "byol_pytorch"),
    ),
    Case(
        "byol-pytorch, net.* left out",
        "resnet18",
        _pure_byol("resnet18")._replace(layout=None, renamed=_without_duplicates),
    ),
    *(Case("lightly", name, _lightly(name)) for name in RESNETS),
    Case(
        "lightly",
        "its ResNet of 4 blocks for CIFAR, traced",
        Learners(
            lambda: Lightly(lightly_cifar()),
            LIGHTLY,
            _ours(_traced(lightly_cifar), "6"),
            "lightly-cifar",
        ),
    ),
    Case(
        "lightly",
        "a ResNet of 4 blocks, traced",
        Learners(lambda: Lightly(cut(resnet())), LIGHTLY, _ours(_traced(lambda: cut(resnet())), "8"), "lightly"),
    ),
    *(Case("solo-learn", name, _solo(name)) for name in RESNETS),
    *(Case("DeepMind", name, Recorded(name)) for name in deepmind_files.TINY),
    *(
        Case("torchvision", name, Networks(_torchvision(name), _native(name), name))
        for name in (*RESNETS, "resnet34", "resnet101", "resnet152")
    ),
    Case("torchvision", "ViT-Ti/16", Networks(_torch_vit, lambda: nets.vit(12, mlp_width=768, **TINY_VIT), "vit_b_16")),
    Case(
        "timm",
        "vit_tiny_patch16_224",
        Networks(
            partial(timm.create_model, "vit_tiny_patch16_224", img_size=SIZE),
            lambda: nets.vit(12, mlp_width=768, **TINY_VIT),
            "vit_base_patch16_224",
        ),
    ),
)
