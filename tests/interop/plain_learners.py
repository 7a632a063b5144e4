"""lightly's and solo-learn's learners with small ResNets, written here from their names: modules, losses, nothing else.

lightly      heads without a first bias; loss -½(cos + cos); backbone cut, or whole without `fc`
solo-learn   heads with all biases; loss (2 - 2 cos) + (2 - 2 cos); backbone whole without `fc`
"""

import copy

import jax
import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock

from byol_jax import make_learner, nets
from tests.parity.trajectory import QUICK, torch_images

SIZE, WIDTH, HIDDEN, CLASSES = 32, 16, 24, 3
IMAGES = np.random.default_rng(0).random((4, SIZE, SIZE, 3)).astype(np.float32)
HEADS = {"projection_size": WIDTH, "projection_hidden_size": HIDDEN}


def resnet(*, stem="imagenet", padding=1):
    """torchvision's, with one block a stage; 512 features."""
    net = torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1])
    net.fc = nn.Identity()
    if stem == "cifar":
        net.conv1 = nn.Conv2d(3, 64, 3, padding=padding, bias=False)
        net.maxpool = nn.Identity()
    return net


def cut(net):
    return nn.Sequential(*list(net.children())[:-1])


def lightly_cifar(name="resnet-9"):
    """lightly's own network, cut as its benchmark on CIFAR-10 does: without the ReLU that only `forward` has."""
    from lightly.models import ResNetGenerator

    return nn.Sequential(*cut(ResNetGenerator(name)), nn.AdaptiveAvgPool2d(1))


class Head(nn.Module):
    """lightly's ProjectionHead."""

    def __init__(self, entering):
        super().__init__()
        first, last = nn.Linear(entering, HIDDEN, bias=False), nn.Linear(HIDDEN, WIDTH)
        self.layers = nn.Sequential(first, nn.BatchNorm1d(HIDDEN), nn.ReLU(), last)

    def forward(self, x):
        return self.layers(x)


class Lightly(nn.Module):
    """A learner whose momentum copies are called as `momentum` says, "{}_momentum"."""

    def __init__(self, backbone, momentum="{}_momentum", *, classifier=False, features=512):
        super().__init__()
        self.backbone, self.projection_head, self.prediction_head = backbone, Head(features), Head(WIDTH)
        self.names = [momentum.format(name) for name in ("backbone", "projection_head")]
        self.add_module(self.names[0], copy.deepcopy(backbone))
        self.add_module(self.names[1], copy.deepcopy(self.projection_head))
        if classifier:
            self.online_classifier = nn.Module()
            self.online_classifier.classification_head = nn.Linear(features, CLASSES)

    def loss(self, view1, view2):
        """NegativeCosineSimilarity, both ways, halved; views one after another."""
        backbone, head = (self.get_submodule(name) for name in self.names)
        predictions, targets = [], []
        for view in (view1, view2):
            predictions.append(self.prediction_head(self.projection_head(self.backbone(view).flatten(1))))
            with torch.no_grad():
                targets.append(head(backbone(view).flatten(1)))
        (p1, p2), (z1, z2) = predictions, targets
        return -0.5 * (F.cosine_similarity(p1, z2) + F.cosine_similarity(p2, z1)).mean()


def mlp(entering):
    return nn.Sequential(nn.Linear(entering, HIDDEN), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH))


class SoloLearn(nn.Module):
    """A learner whose network is called `backbone`, or `encoder` as up to 1.0.2."""

    def __init__(self, net, name="backbone", *, features=512):
        super().__init__()
        self.name = name
        self.add_module(name, net)
        self.classifier = nn.Linear(features, CLASSES)
        self.add_module(f"momentum_{name}", copy.deepcopy(net))
        self.projector, self.momentum_projector, self.predictor = mlp(features), mlp(features), mlp(WIDTH)
        self.momentum_projector.load_state_dict(self.projector.state_dict())

    def loss(self, view1, view2):
        online, target = self.get_submodule(self.name), self.get_submodule(f"momentum_{self.name}")
        predictions = [self.predictor(self.projector(online(view))) for view in (view1, view2)]
        with torch.no_grad():
            targets = [self.momentum_projector(target(view)) for view in (view1, view2)]
        pairs = zip(predictions, reversed(targets), strict=True)
        return sum((2 - 2 * F.cosine_similarity(p, z)).mean() for p, z in pairs)


def randomised(module, seed=0):
    """Every parameter and statistic differs from its start, and the momentum copies from their models."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            else:
                tensor.mul_(1 + 0.3 * torch.rand(tensor.shape, generator=generator))
                tensor.add_(0.01 * torch.rand(tensor.shape, generator=generator))
    return module


def learner(*, num_classes=None, encoder=None, hidden_layer="avgpool", **options):
    """Ours: the same network, views one after another, the second one flipped."""
    encoder = encoder or nets.resnet((1, 1, 1, 1), num_classes=num_classes, **options)
    return make_learner(
        encoder,
        image_size=SIZE,
        hidden_layer=hidden_layer,
        augment_fn=lambda key, image: image,
        augment_fn2=lambda key, image: image[:, ::-1],
        views="separate",
        **HEADS,
    )


def loss_of(one):
    """state → the loss of its next step on `IMAGES`; compiled once."""
    loss = jax.jit(lambda state: one.loss(state.online.params, state, IMAGES, state.key)[0], compiler_options=QUICK)
    return lambda state: float(loss(state))


def their_next_loss(module):
    with torch.no_grad():
        return module.train().loss(torch_images(IMAGES), torch_images(IMAGES[:, :, ::-1])).item()
