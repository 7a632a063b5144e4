"""What a run's weights are worth in PyTorch: torchvision's ResNet fine-tuned there on 1 % of the labels.

Two starts, fine-tuned alike: the network as `nets.resnet` drew it, and the same one after BYOL on all images without
labels. Each is written as a .pt file, loaded strictly by torchvision's ResNet and trained by torch alone: SGD with
Nesterov momentum 0.9, a cosine to 0, a new classifier of zeros. Its rate is chosen on 20 % of the labelled images.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.proof.ablations import train
from benchmarks.proof.data import Images, rgb
from byol_jax import make_learner, nets, presets
from byol_jax.byol import encoder_variables
from byol_jax.evaluate import label_subset
from byol_jax.evaluate.linear import validation_rows
from byol_jax.recipe import learner_arguments
from byol_jax.types import Variables

__all__ = ["finetune", "run"]

RATE, DECAY = 1e-3, 0.99
"""AdamW's and the target's, in place of the demo's 4e-3 and 0.98, which are a small network's."""
BATCH = 64
MEAN, STD = 0.3, 0.35
"""The demo's, in the learner as in torch, for each of three equal channels."""


def run(
    options: Mapping[str, Any], images: Images, *, seed: int, tell: Callable[[str], None], **_: Any
) -> dict[str, Any]:
    """`random` and `byol`: each `accuracy` on all test images and the `learning_rate` chosen; `gain`; `labels`."""
    images = rgb(images)
    recipe = replace(
        presets.small_grey(),
        base_learning_rate=RATE,
        base_decay=DECAY,
        steps=options["steps"],
        batch_size=options["batch_size"],
        num_channels=3,
        normalize=((MEAN,) * 3, (STD,) * 3),
        hidden_layer="avgpool",
    )
    encoder = nets.resnet(tuple(options["stages"]), block="basic")
    learner = make_learner(encoder, **learner_arguments(recipe))
    start = encoder_variables(learner.init(jax.random.key(seed)))
    state, facts = train(learner, images.train, options, seed=seed, steps=options["steps"])
    rows = label_subset(images.train_labels, fraction=options["fraction"], seed=seed)
    few = images._replace(train=images.train[rows], train_labels=images.train_labels[rows])
    found = {}
    for name, variables in {"random": start, "byol": encoder_variables(state)}.items():
        with tempfile.TemporaryDirectory() as folder:
            make = _in_torch(variables, options["stages"], Path(folder, f"{name}.pt"))
            found[name] = _finetuned(make, few, options, seed=seed)
        tell(f"{name}: {found[name]['accuracy']:.4f} of {len(images.test):,}, rate {found[name]['learning_rate']}")
    gain = found["byol"]["accuracy"] - found["random"]["accuracy"]
    return found | {"gain": gain, "labels": len(rows)} | facts


def _in_torch(variables: Variables, stages: Sequence[int], path: Path) -> Callable[[int], Any]:
    """A function that makes torchvision's ResNet with these weights and a new classifier of so many classes."""
    import torch
    from torchvision.models import resnet

    import interop

    interop.save_state_dict(path, interop.to_torch_state_dict(variables))

    def make(classes: int) -> Any:
        module = resnet.ResNet(resnet.BasicBlock, list(stages))
        module.load_state_dict(torch.load(path, weights_only=True), strict=True)
        module.fc = torch.nn.Linear(module.fc.in_features, classes)
        torch.nn.init.zeros_(module.fc.weight)
        torch.nn.init.zeros_(module.fc.bias)
        return module

    return make


def _finetuned(make: Callable[[int], Any], images: Images, options: Mapping[str, Any], *, seed: int) -> dict[str, Any]:
    """The accuracy at the rate that is best on held-out labelled images; trained again on all of them."""
    classes, epochs = int(images.train_labels.max()) + 1, options["epochs"]
    held_out = validation_rows(images.train_labels, fraction=0.2, seed=seed)
    part = Images(*(array[~held_out] for array in images[:2]), *(array[held_out] for array in images[:2]))
    tried = {
        rate: finetune(make(classes), part, rate=rate, epochs=epochs, seed=seed) for rate in options["learning_rates"]
    }
    rate = max(tried, key=tried.__getitem__)  # among equals the first
    accuracy = finetune(make(classes), images, rate=rate, epochs=epochs, seed=seed)
    return {"accuracy": accuracy, "learning_rate": rate, "validation": tried[rate]}


def finetune(module: Any, images: Images, *, rate: float, epochs: int, seed: int) -> float:
    """Trains a torch module on the training images; its accuracy on the test images, in [0, 1]."""
    import torch

    torch.manual_seed(seed)
    inputs, tests = (_floats(part) for part in (images.train, images.test))
    labels = torch.from_numpy(images.train_labels.astype(np.int64))
    size = min(BATCH, len(inputs))
    optimizer = torch.optim.SGD(module.parameters(), lr=rate, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * (len(inputs) // size))
    module.train()
    for _ in range(epochs):
        order = torch.randperm(len(inputs))
        for start in range(0, len(inputs) - size + 1, size):
            rows = order[start : start + size]
            loss = torch.nn.functional.cross_entropy(module(inputs[rows]), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    module.eval()
    with torch.no_grad():
        answers = torch.cat([module(part).argmax(1) for part in tests.split(500)]).numpy()
    return float(np.mean(answers == images.test_labels))


def _floats(images: np.ndarray) -> Any:
    """As the learner normalises them; [N, 3, H, W]."""
    import torch

    pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float()
    return (pixels / 255 - float(MEAN)) / float(STD)
