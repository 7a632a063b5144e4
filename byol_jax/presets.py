"""Published and measured recipes, where each comes from, and what it is known to give.

A preset is a `Recipe` (byol_jax/recipe.py); it starts nothing and builds no network. `byol-jax train --preset NAME`
launches it; in Python `learner_options` turns it into the arguments of `make_learner`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from byol_jax import recipe
from byol_jax.errors import ConfigurationError
from byol_jax.recipe import Recipe as Preset

if TYPE_CHECKING:
    import jax
    import optax

__all__ = [
    "Known",
    "Preset",
    "decay",
    "imagenet",
    "imagenette",
    "known",
    "learner_options",
    "optimizer",
    "small_batch",
    "small_grey",
    "total_steps",
]

_IMAGENET = Preset(
    name="imagenet-1000",
    optimizer="lars",
    base_learning_rate=0.2,
    weight_decay=1.5e-6,
    base_decay=0.996,
    batch_size=4096,
    network="resnet50",
    network_options={"padding": "same", "shortcut": "always"},
    hidden_layer="avgpool",
    image_size=224,
    normalize=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    augmentation="byol",
    views="separate",
    epochs=1000,
    warmup_epochs=10,
)

_BY_EPOCHS = {40: (0.45, 1e-6, 0.97), 100: (0.45, 1e-6, 0.99), 300: (0.3, 1e-6, 0.99), 1000: (0.2, 1.5e-6, 0.996)}
"""Base learning rate, weight decay and base decay for each length that DeepMind's configuration knows."""


def imagenet(epochs: int) -> Preset:
    """ResNet-50 on ImageNet, batch 4096, for 40, 100, 300 or 1000 epochs.

    Base learning rates, weight decays, base decays, the ten warm-up epochs (in the 40-epoch recipe too), LARS's
    constants, the heads' widths and normalisation are those of google-deepmind/deepmind-research,
    `byol/configs/byol.py` and `byol/utils/`; what that code does otherwise is listed in docs/parity.md. The 1000-epoch
    ones are also in BYOL (arXiv:2006.07733), section 3.3.

    Raises:
        ConfigurationError: another number of epochs.

    Example:
        >>> imagenet(300).base_learning_rate
        0.3
    """
    if epochs not in _BY_EPOCHS:
        lengths = ", ".join(map(str, _BY_EPOCHS))
        raise ConfigurationError(
            f"presets.imagenet({epochs!r}): there is no such recipe; epochs must be one of {lengths}"
        )
    rate, weight_decay, base_decay = _BY_EPOCHS[epochs]
    return replace(
        _IMAGENET,
        name=f"imagenet-{epochs}",
        epochs=epochs,
        base_learning_rate=rate,
        weight_decay=weight_decay,
        base_decay=base_decay,
    )


def small_batch() -> Preset:
    """ImageNet for 1000 epochs at batch 512: rate 0.4, base decay 0.9995, weight decay 1.5e-6.

    Source: BYOL (arXiv:2006.07733), appendix G. All else as in `imagenet(1000)`.

    Example:
        >>> small_batch().batch_size
        512
    """
    return replace(_IMAGENET, name="small_batch", batch_size=512, base_learning_rate=0.4, base_decay=0.9995)


def imagenette() -> Preset:
    """ResNet-18 on Imagenette at 128 pixels, batch 256, 1000 epochs: rate 2.0, weight decay 1e-6, base decay 0.996.

    Source: the README of google-deepmind/deepmind-research, `byol/`, which reports 92.3 % for it: of a classifier that
    its code trains along with the network, `with_online_probe` here. All else as in `imagenet(1000)`.

    Example:
        >>> imagenette().image_size
        128
    """
    return replace(
        _IMAGENET,
        name="imagenette",
        network="resnet18",
        image_size=128,
        batch_size=256,
        base_learning_rate=2.0,
        weight_decay=1e-6,
    )


def small_grey() -> Preset:
    """A small convolutional network on grey 28-pixel images: 16,700 steps of 64, five to ten minutes on two cores.

    Adam at 4e-3 after 5 % warm-up, decoupled weight decay 1e-5 on kernels, target decay 0.98 → 1, heads 256 → 128,
    mean 0.3 and deviation 0.35 (Fashion-MNIST's are 0.286 and 0.353). The representation is the flattened last map.

    Source: this project's own recipe for small grey images; none of it is from the paper.

    Example:
        >>> small_grey().num_channels
        1
    """
    return Preset(
        name="small_grey",
        optimizer="adamw",
        base_learning_rate=4e-3,
        weight_decay=1e-5,
        base_decay=0.98,
        batch_size=64,
        steps=16_700,
        warmup_fraction=0.05,
        network="small_cnn",
        hidden_layer=-2,
        image_size=28,
        num_channels=1,
        normalize=((0.3,), (0.35,)),
        augmentation="small_grey",
        views="concatenated",
        projection_hidden_size=256,
        projection_size=128,
    )


_RESNET_50_224, _RESNET_18_128, _SMALL_CNN_28 = 62.85e9, 8.275e9, 38.1e6
"""Operations for an image in a step: of ResNets in closed form (benchmarks/harness/flops.py), without those for a
padding's zeros, and with the 1 × 1 convolution of 64 channels that a ResNet-18's first block has by
`shortcut="always"`: 0.067e9; of the small network as XLA counts them, element-wise ones included."""


class Known(NamedTuple):
    """What is known of a preset: where it comes from, what it gave there, and what it costs.

    Attributes:
        preset: the recipe itself.
        source: where its numbers are published.
        result: what it gave.
        machine: on what that ran, and for how long.
        images: in an epoch of the set that it was published for.
        operations: floating-point operations for an image in a step, both views and both networks, forward and
            backward; computed from shapes.
    """

    preset: Preset
    source: str
    result: str
    machine: str
    images: int
    operations: float

    @property
    def total_operations(self) -> float:
        """Of the whole run: steps · images a step · `operations`."""
        size = self.preset.batch_size
        return total_steps(self.preset, num_images=self.images, batch_size=size) * size * self.operations


def known() -> tuple[Known, ...]:
    """Every preset, in the order of the help, with its source and its published result.

    Example:
        >>> [one.preset.name for one in known()][:2]
        ['imagenet-40', 'imagenet-100']
    """
    configuration = "google-deepmind/deepmind-research, byol/configs/byol.py"
    linear = "linear evaluation on ImageNet"
    unknown = "not published"
    pod = "512 TPU v3 cores, about 8 hours (BYOL, section 3.3)"
    return (
        _imagenet(imagenet(40), configuration, unknown, unknown),
        _imagenet(imagenet(100), configuration, unknown, unknown),
        _imagenet(
            imagenet(300),
            configuration,
            f"72.5 % top-1, 90.8 % top-5, {linear} (BYOL, baseline of the ablations)",
            unknown,
        ),
        _imagenet(
            imagenet(1000),
            f"{configuration}; BYOL, section 3.3",
            f"74.3 % top-1, 91.6 % top-5, {linear} (BYOL)",
            pod,
        ),
        _imagenet(
            small_batch(),
            "BYOL, appendix G",
            f"73.7 % top-1, {linear} (BYOL)",
            "64 TPU v3 cores, about 4 days (BYOL)",
        ),
        Known(
            imagenette(),
            "google-deepmind/deepmind-research, byol/README.md",
            "92.3 %, online linear classifier on Imagenette (that README)",
            "one V100, about 4 hours (that README)",
            images=9_469,
            operations=_RESNET_18_128,
        ),
        Known(
            small_grey(),
            "this project",
            "measured here: 88.3 % kNN, 89.6 % linear, on 2,000 images of Fashion-MNIST (byol-jax demo, seed 0)",
            "two CPU cores, 5 to 10 minutes (measured here, two machines)",
            images=8_000,
            operations=_SMALL_CNN_28,
        ),
    )


def _imagenet(preset: Preset, source: str, result: str, machine: str) -> Known:
    return Known(preset, source, result, machine, images=1_281_167, operations=_RESNET_50_224)


def total_steps(preset: Preset, *, num_images: int, batch_size: int) -> int:
    """How many steps the recipe takes: ⌊epochs · num_images / batch_size⌋, or the number that it states itself.

    Example:
        >>> total_steps(imagenet(100), num_images=1_281_167, batch_size=4096)
        31278
    """
    if preset.steps is not None:
        return preset.steps
    return (preset.epochs or 0) * num_images // batch_size


def optimizer(
    preset: Preset, *, batch_size: int, total_steps: int, steps_per_epoch: float
) -> "optax.GradientTransformation":
    """The recipe's optimiser, learning-rate schedule included.

    Args:
        batch_size: the global batch size really used; LARS's rate is scaled by batch_size / 256.
        total_steps: where the rate reaches 0.
        steps_per_epoch: images / batch_size, unrounded; the warm-up is rounded down to whole steps.

    Raises:
        ConfigurationError: sizes below 1, or a run shorter than its warm-up.

    Example:
        >>> chain = optimizer(imagenet(100), batch_size=4096, total_steps=31278, steps_per_epoch=312.8)
        >>> chain.init({"fc": {"bias": None}})[-1].count
        Array(0, dtype=int32)
    """
    return recipe.optimizer(_size_preset(preset, batch_size, total_steps, steps_per_epoch))


def decay(preset: Preset, total_steps: int) -> "float | Callable[[Any], jax.Array]":
    """The recipe's target decay: `schedules.target_decay` from `preset.base_decay`, or with a constant schedule that.

    Example:
        >>> decay(imagenet(1000), 100)(100)
        Array(1., dtype=float32)
    """
    return recipe.target_decay(replace(preset, epochs=None, steps=total_steps))


def learner_options(preset: Preset, *, batch_size: int, total_steps: int, steps_per_epoch: float) -> dict[str, Any]:
    """The recipe as arguments of `make_learner`, for a run of this size.

    Args:
        batch_size, total_steps, steps_per_epoch: as for `optimizer`, whose errors it raises too.

    Example:
        >>> options = learner_options(small_grey(), batch_size=64, total_steps=100, steps_per_epoch=125)
        >>> options["projection_size"], options["num_channels"]
        (128, 1)
    """
    return recipe.learner_arguments(_size_preset(preset, batch_size, total_steps, steps_per_epoch))


def _size_preset(preset: Preset, batch_size: int, total_steps: int, steps_per_epoch: float) -> Preset:
    recipe.check_effect(preset)
    sized = recipe.size_for_run(preset, batch_size=batch_size, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    recipe.check_warmup(sized)
    return sized
