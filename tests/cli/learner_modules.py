"""Learners of three libraries around one small network, as modules, as files, and ours."""

import io
from functools import cache

import torch
from byol_pytorch import BYOL
from torch import nn

from byol_jax import make_learner, nets
from tests.interop import plain_learners

SIZE, CLASSES = 16, 10
HEADS = {"projection_size": plain_learners.WIDTH, "projection_hidden_size": plain_learners.HIDDEN}
IMPORT = ("--network", "small_cnn", "--image-size", SIZE)


def small_cnn(*, classifier=True):
    """torch's, whose flattened map is 512 wide, as `plain_learners`' heads take it."""
    net = eval(nets.cnn.torch_expression((32, 64, 128), 3, CLASSES, SIZE), {"nn": nn})
    return net if classifier else net[:-1]


def byol_pytorch(**options):
    given = HEADS | {"use_simplicial_embeddings": False, "hidden_layer": -2} | options
    return BYOL(small_cnn(), image_size=SIZE, **given)


LEARNERS = {
    "byol-pytorch": byol_pytorch,
    "lightly": lambda: plain_learners.Lightly(small_cnn(classifier=False)),
    "solo-learn": lambda: plain_learners.SoloLearn(small_cnn(classifier=False)),
}
ROOTS = {
    "byol-pytorch": ("online_encoder.net.", "target_encoder.net."),
    "lightly": ("backbone.", "backbone_momentum."),
    "solo-learn": ("backbone.", "momentum_backbone."),
}


@cache  # byol-pytorch draws by Python's own generator too
def module_of(library, seed=0):
    return plain_learners.randomised(LEARNERS[library](), seed)


def learner(*, classifier=True, **options):
    encoder = nets.small_cnn(num_classes=CLASSES if classifier else None)
    hidden_layer = -2 if classifier else -1
    return make_learner(encoder, image_size=SIZE, hidden_layer=hidden_layer, **(HEADS | options))


@cache
def content_of(library):
    """A file of the library's learner, as a trainer writes it."""
    stored = io.BytesIO()
    state_dict = {f"model.{name}": tensor for name, tensor in module_of(library).state_dict().items()}
    torch.save({"state_dict": state_dict, "epoch": 2}, stored)
    return stored.getvalue()


def arrays(module):
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def stripped(state_dict, root):
    return {name.removeprefix(root): value for name, value in state_dict.items() if name.startswith(root)}


def write_learners(folder):
    """A file of each library's learner."""
    for library in LEARNERS:
        (folder / f"{library}.ckpt").write_bytes(content_of(library))
