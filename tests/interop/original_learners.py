"""lightly's and solo-learn's learners themselves, each with the training step that the library or its example has.

lightly      its heads, its loss, its network for CIFAR and its update of the momentum copies, put together as
             lightly's example of BYOL does
solo-learn   its class BYOL: networks, training step, losses, optimiser, momentum and its schedule

solo-learn 1.0.2 asks for a Lightning and a torch of 2021. What BYOL doesn't use of them is stood in for (`STAND_INS`);
of solo-learn's own files those that import every method and command are passed over (`PASSED_OVER`), none is replaced.
"""

import copy
import importlib
import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from plain_learners import CLASSES, HIDDEN, WIDTH
from torch import nn

from tests.parity.trajectory import torch_images

RATE, DECAY, TAU = 0.05, 0.01, 0.9
BATCH, STEPS = 4, 4


class LightningModule(nn.Module):
    """What BYOL's step asks of Lightning's: to take what is logged; `trainer` is set by the run."""

    def __init__(self):
        super().__init__()
        self.logged = {}

    def log(self, name, value):
        self.logged[name] = value

    def log_dict(self, metrics, **options):
        self.logged.update(metrics)


STAND_INS = {
    "pytorch_lightning": {"LightningModule": LightningModule},  # 1.4.7 wants torch below 2; logging and hooks alone
    "pl_bolts.optimizers.lr_scheduler": {"LinearWarmupCosineAnnealingLR": None},  # no release imports with Lightning 2
    "torchmetrics.metric": {"Metric": nn.Module},  # base of the nearest-neighbour classifier, which is off
}
PASSED_OVER = ("solo", "solo.methods", "solo.utils")
"""Their `__init__` imports all methods (one of them `distutils`, gone in Python 3.12), arguments and checkpointing."""


@cache
def solo_learn_byol():
    """solo-learn's class. The stand-ins are gone afterwards; nobody else finds a Lightning that is none."""
    path = Path(importlib.util.find_spec("solo").origin).parents[1]
    packages = {name: {"__path__": [str(path.joinpath(*name.split(".")))]} for name in PASSED_OVER}
    for name, contents in (STAND_INS | packages).items():
        assert name not in sys.modules, name
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(contents)
    try:
        return importlib.import_module("solo.methods.byol").BYOL
    finally:
        for name in STAND_INS:
            del sys.modules[name]


def solo_learn(*, cifar=False):
    """solo-learn's learner of a resnet18, as its script makes it from such arguments."""
    return solo_learn_byol()(
        encoder="resnet18",
        backbone_args={"cifar": cifar, "zero_init_residual": False},
        num_classes=CLASSES,
        proj_output_dim=WIDTH,
        proj_hidden_dim=HIDDEN,
        pred_hidden_dim=HIDDEN,
        base_tau_momentum=TAU,
        final_tau_momentum=1.0,
        momentum_classifier=False,
        num_large_crops=2,
        num_small_crops=0,
        max_epochs=1,
        batch_size=BATCH,
        accumulate_grad_batches=1,
        optimizer="sgd",
        extra_optimizer_args={},
        lars=False,
        exclude_bias_n_norm=False,
        lr=RATE,
        classifier_lr=RATE,
        weight_decay=DECAY,
        scheduler="none",
        min_lr=0.0,
        warmup_start_lr=0.0,
        warmup_epochs=0,
    )


class SoloLearnRun:
    """Lightning's loop around solo-learn's learner, from step `done` of `STEPS` on."""

    def __init__(self, module, done=0):
        self.module, self.optimizer = module.train(), module.configure_optimizers()
        module.trainer = SimpleNamespace(
            global_step=done, accumulate_grad_batches=1, train_dataloader=range(STEPS), max_epochs=1
        )
        module.last_step = done
        module.momentum_updater.update_tau(cur_step=done, max_steps=STEPS)

    def step(self, images):
        """BYOL's loss, of the two that solo-learn trains: its classifier's stops at the features."""
        labels = torch.arange(len(images)) % CLASSES
        batch = (None, views(images), labels)
        self.optimizer.zero_grad()
        total = self.module.training_step(batch, 0)
        total.backward()
        self.optimizer.step()
        self.module.trainer.global_step += 1
        self.module.on_train_batch_end(total, batch, 0, 0)
        loss = self.module.logged["train_neg_cos_sim"]
        assert total.item() == (loss + self.module.logged["train_class_loss"]).item()
        return loss.item()


def views(images):
    """An image and its mirror image, which ours has as well."""
    return [torch_images(images), torch_images(images[:, :, ::-1])]


class Lightly(nn.Module):
    """The module of lightly's example: its heads on a backbone, and momentum copies of it and of the first."""

    def __init__(self, backbone, features=512):
        from lightly.models.modules import BYOLPredictionHead, BYOLProjectionHead
        from lightly.models.utils import deactivate_requires_grad

        super().__init__()
        self.backbone = backbone
        self.projection_head = BYOLProjectionHead(features, HIDDEN, WIDTH)
        self.prediction_head = BYOLPredictionHead(WIDTH, HIDDEN, WIDTH)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.projection_head_momentum)

    def forward(self, x):
        return self.prediction_head(self.projection_head(self.backbone(x).flatten(start_dim=1)))

    def forward_momentum(self, x):
        return self.projection_head_momentum(self.backbone_momentum(x).flatten(start_dim=1)).detach()


class LightlyRun:
    """The loop of lightly's example, but for the momentum copies, which it moves before each step and not after it.

    Its loss's gradient is a quarter of ours, so the rate is four times `RATE`.
    """

    def __init__(self, module, done=0):
        self.module = module.train()
        self.optimizer = torch.optim.SGD(module.parameters(), lr=4 * RATE, weight_decay=DECAY / 4)

    def move_target(self):
        from lightly.models.utils import update_momentum

        for part in ("backbone", "projection_head"):
            update_momentum(getattr(self.module, part), getattr(self.module, f"{part}_momentum"), m=TAU)

    def step(self, images):
        """The loss in lightly's units, -½(cos + cos)."""
        from lightly.loss import NegativeCosineSimilarity

        criterion = NegativeCosineSimilarity()
        x0, x1 = views(images)
        p0, z0 = self.module(x0), self.module.forward_momentum(x0)
        p1, z1 = self.module(x1), self.module.forward_momentum(x1)
        loss = 0.5 * (criterion(p0, z1) + criterion(p1, z0))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.move_target()
        return loss.item()
