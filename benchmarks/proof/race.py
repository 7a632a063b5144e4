"""The race: the same torch network, start, images, order, batch and optimiser in byol_jax and in byol-pytorch 0.9.1.

Each side has the same seconds to train. The clock begins with a torch network in hand, frameworks imported: byol_jax
traces, verifies and compiles on it, byol-pytorch builds its learner. It stands still while features are measured.
Both have their defaults: byol_jax `augment.simclr`, drawn for each image; byol-pytorch the same set from torchvision,
drawn once a batch; then ImageNet's normalisation. Simplicial embeddings are off. Heads 256 and 4096, Adam at 3e-4.
"""

import os
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from benchmarks.harness.contenders import Stopwatch
from benchmarks.harness.machine import available_cores
from benchmarks.proof.data import Images, rgb
from benchmarks.proof.measure import accuracies
from byol_jax.data.order import batches_from

__all__ = [
    *("SIDES", "Clock", "Contestant", "against_the_clock", "run"),
    *("photo_network", "small_network", "tiny_network"),
]

LEARNING_RATE = 3e-4
"""Adam's, as in byol-pytorch's own example."""


class Clock:
    """Seconds of training: runs between `start` and `stop`."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now, self._before, self._since = now, 0.0, None

    def start(self) -> None:
        self._since = self._now()

    def stop(self) -> None:
        self._before, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        return self._before + (0.0 if self._since is None else self._now() - self._since)


class Contestant(NamedTuple):
    """A learner at work.

    Attributes:
        step: trains on one batch, uint8 [N, H, W, 3], and returns when it is done.
        embed: features [N, D] in evaluation mode, of uint8 images.
        phases: seconds by what was done before the first step.
    """

    step: Callable[[np.ndarray], None]
    embed: Callable[[np.ndarray], np.ndarray]
    phases: Mapping[str, float]


def run(options: Mapping[str, Any], images: Images, *, seed: int, tell: Callable[[str], None], **_: Any) -> Any:
    """One side's race: `points`, each with `seconds, step, knn, linear`, `phases`, `steps` and `train_seconds`.

    The first point is the start's: not trained yet, after whatever the set-up took.
    """
    images, clock = rgb(images), Clock()
    build = SIDES[options["side"]](options, seed)
    clock.start()
    contestant = build()
    clock.stop()
    batches = batches_from(0, seed=seed, count=len(images.train), batch_size=options["batch_size"])

    def measure(step: int) -> dict[str, float]:
        scores = accuracies(contestant.embed, images, labelled=options["labelled"])
        tell(f"{clock.seconds:.0f} s, {step} steps: kNN {scores['knn']:.4f}, linear {scores['linear']:.4f}")
        return scores

    train = (lambda: contestant.step(images.train[next(batches)]), measure)
    points = against_the_clock(*train, clock, seconds=options["train_seconds"], every=options["every_seconds"])
    facts = {"steps": points[-1]["step"], "train_seconds": clock.seconds, "phases": dict(contestant.phases)}
    return {"points": points} | facts


def against_the_clock(
    step: Callable[[], None],
    measure: Callable[[int], Mapping[str, float]],
    clock: Clock,
    *,
    seconds: float,
    every: float,
) -> list[dict[str, Any]]:
    """Steps until the clock says `seconds`; a point at the start, after each `every` seconds, and at the end.

    The clock runs during a step alone, and has whatever was on it before.

    Args:
        measure: given the number of steps that were made.
    """
    points, count, due = [], 0, 0.0
    while True:
        over = clock.seconds >= seconds
        if over or clock.seconds >= due:
            points.append({"seconds": clock.seconds, "step": count} | dict(measure(count)))
            due = (clock.seconds // every + 1) * every
        if over:
            return points
        clock.start()
        step()
        clock.stop()
        count += 1


def byol_jax(options: Mapping[str, Any], seed: int) -> Callable[[], Contestant]:
    """This project around the traced torch network, from byol-pytorch's own start: all weights and statistics."""
    import jax
    import optax

    import interop
    from byol_jax import make_learner

    start = {name: tensor.numpy().copy() for name, tensor in _byol_pytorch(options, seed).state_dict().items()}
    module = _network(options, seed)

    def build() -> Contestant:
        watch = Stopwatch()
        encoder = interop.from_torch_module(module, image_size=options["image_size"])
        watch.lap("trace and verify")
        optimizer = optax.adam(LEARNING_RATE)
        learner = make_learner(encoder, image_size=options["image_size"], optimizer=optimizer, **_head_sizes(options))
        like = learner.init(jax.random.key(seed))
        state = jax.block_until_ready(interop.load_byol_checkpoint(start, like=like, source="byol_pytorch"))
        watch.lap("state")
        side, batch = options["image_size"], options["batch_size"]
        example = jax.ShapeDtypeStruct((batch, side, side, 3), np.uint8)
        compiled = jax.jit(learner.step, donate_argnums=0).lower(state, example).compile()
        watch.lap("compile")
        now, embed = {"state": state}, jax.jit(learner.embed)

        def step(images: np.ndarray) -> None:
            now["state"], metrics = compiled(now["state"], images)
            jax.block_until_ready(metrics)

        return Contestant(step, lambda images: embed(now["state"], images), watch.seconds)

    return build


def byol_pytorch(options: Mapping[str, Any], seed: int) -> Callable[[], Contestant]:
    """byol-pytorch as in its README: eager, NCHW. Features are of normalised images, which is what it trains on."""
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", available_cores())))
    mean, std = (torch.tensor(row).view(1, 3, 1, 1) for row in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))

    def floats(images: np.ndarray) -> Any:
        return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 255  # [N, 3, H, W]

    def build() -> Contestant:
        watch = Stopwatch()
        learner = _byol_pytorch(options, seed)
        optimizer = torch.optim.Adam(learner.parameters(), lr=LEARNING_RATE)
        watch.lap("learner")

        def step(images: np.ndarray) -> None:
            loss = learner(floats(images))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            learner.update_moving_average()

        def embed(images: np.ndarray) -> np.ndarray:
            learner.eval()
            with torch.no_grad():
                normalised = (floats(images) - mean) / std
                features = learner(normalised, return_embedding=True, return_projection=False)
            learner.train()
            return features.numpy()

        return Contestant(step, embed, watch.seconds)

    return build


SIDES = {"byol_jax": byol_jax, "byol_pytorch": byol_pytorch}


def _byol_pytorch(options: Mapping[str, Any], seed: int) -> Any:
    import torch
    from byol_pytorch import BYOL

    module = _network(options, seed)
    random.seed(seed)
    torch.manual_seed(seed)
    return BYOL(module, image_size=options["image_size"], use_simplicial_embeddings=False, **_head_sizes(options))


def _network(options: Mapping[str, Any], seed: int) -> Any:
    from interop.trace.modules import torch_module

    return torch_module(options["network"], image_size=options["image_size"], seed=seed)


def _head_sizes(options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "hidden_layer": options["layer"],
        "projection_size": options.get("projection_size", 256),
        "projection_hidden_size": options.get("hidden_size", 4096),
    }


def small_network() -> Any:
    """The demo's network, for images of three channels: 28 x 28 become 2,048 features."""
    return _strided(32, 64, 128)


def photo_network() -> Any:
    """One convolution more: 64 x 64 become 4,096 features."""
    return _strided(32, 64, 128, 256)


def _strided(*widths: int) -> Any:
    """Strided convolutions with batch norm and ReLU, and the last map flattened; as `byol_jax.nets.small_cnn`."""
    from torch import nn

    layers, before = [], 3
    for width in widths:
        convolution = nn.Conv2d(before, width, 3 if layers else 4, stride=2, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.Flatten())


def tiny_network() -> Any:
    """So small that it only tries the command."""
    from torch import nn

    layers = nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers)
