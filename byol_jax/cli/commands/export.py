"""`byol-jax export RUN --out FILE`: the trained encoder as a PyTorch state dict, its own names or torchvision's.

With `--layout` the whole learner, as another library's file has it.
"""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from byol_jax.cli import values
from byol_jax.cli.common import add_output, add_run, add_which, check_output, folder_for

__all__ = ["LAYOUTS", "USAGE", "WRITABLE_WEIGHTS", "add_arguments", "add_layout", "check", "check_layout", "run"]

USAGE = "RUN --out FILE [--which online|target | --layout NAME] [options]"
WRITABLE_WEIGHTS = (".safetensors", ".pt", ".pth", ".npz")

LAYOUTS = (
    *("byol-pytorch", "A", "B", "C", "C-sim", "D0", "D0-sim", "D1", "D1-sim"),
    *("lightly", "lightly-examples", "lightly-benchmarks", "lightly-cifar", "lightly-models"),
    *("solo-learn", "solo-learn-backbone", "solo-learn-encoder"),
)
"""What `interop.save_byol_checkpoint` writes; named here so that help loads nothing."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add_run(parser)
    add_output(parser, *WRITABLE_WEIGHTS, text="the weights")
    add_which(parser)
    add_layout(parser)


def add_layout(parser: argparse.ArgumentParser) -> None:
    """Adds `--layout NAME`."""
    parser.add_argument(
        "--layout",
        type=values.one_of(LAYOUTS),
        metavar="NAME",
        help="write the whole learner, not the encoder alone, as this library's file has it, one of "
        f"{', '.join(LAYOUTS)}; A to D1-sim are byol-pytorch's releases",
    )


def check(options: argparse.Namespace) -> list[str]:
    """What is wrong with the options together."""
    problems = check_output(options.out, overwrite=options.overwrite, inputs={"RUN": options.run})
    return problems + check_layout(options)


def check_layout(options: argparse.Namespace) -> list[str]:
    """The complaint about one network of a file that holds both."""
    if options.layout is not None and options.which == "target":
        return ["--which target with --layout: a learner has both networks, leave one of the two options out"]
    return []


def run(options: argparse.Namespace) -> int:
    """Writes the encoder's weights, or the learner's; prints the file's name, and on stderr what it takes."""
    import interop
    from byol_jax import encoder_variables
    from byol_jax.runs.artifacts import torch_difference
    from byol_jax.runs.reopen import open_run

    opened = open_run(options.run, options.which)
    name, step = opened.config["network"]["name"], int(opened.state.step)
    if (difference := torch_difference(opened.encoder)) is not None:
        print(f"warning: {difference}", file=sys.stderr)
    if options.layout is not None:
        with folder_for(options.out):
            interop.save_byol_checkpoint(options.out, opened.state, layout=options.layout)
        print(f"learner of {name} after step {step} as {options.layout} has it: {options.out}")
        print(describe_input(opened.learner.settings, opened.reading({})["reading"]), file=sys.stderr)
        return 0
    state_dict = interop.encoder_state_dict(opened.encoder, encoder_variables(opened.state, options.which))
    with folder_for(options.out):
        interop.save_state_dict(options.out, state_dict)
    print(f"{len(state_dict)} tensors of {name} after step {step}: {options.out}")
    print(describe_input(opened.learner.settings, opened.reading({})["reading"]), file=sys.stderr)
    return 0


def describe_input(settings: Any, reading: Mapping[str, Any]) -> str:
    """What was made of an image before the network saw it: a file of weights doesn't hold that.

    Args:
        settings: a learner's.
        reading: what was said of how a folder's files are read, as arguments of `open_dataset`.

    Example:
        >>> from types import SimpleNamespace
        >>> grey = SimpleNamespace(image_shape=(28, 28, 1), value_range=((0.0,), (2000.0,)), mean_std=None)
        >>> describe_input(grey, {"bands": (4,)})
        'the images that it takes: 28 x 28 pixels, 1 channel (band 4 of the files), 0 to 2000 as 0 to 1'
    """
    height, width, channels = settings.image_shape
    scale = "0 to 1 (uint8 / 255, uint16 / 65535)"
    if settings.value_range is not None:
        low, high = settings.value_range
        scale = f"{_numbers(low)} to {_numbers(high)} as 0 to 1"
    text = f"the images that it takes: {height} x {width} pixels, {channels} channel{'s' * (channels > 1)}"
    text += f"{_files(reading)}, {scale}"
    if settings.mean_std is None:
        return text
    mean, std = settings.mean_std
    return f"{text}, then minus the mean {_numbers(mean)} and divided by the deviation {_numbers(std)}"


def _files(reading: Mapping[str, Any]) -> str:
    """How channels and numbers come from files, in parentheses; empty where nothing was said of it."""
    bands, axes, words = reading.get("bands"), reading.get("tiff_axes"), []
    if bands is not None:
        words.append(f"band{'s' * (len(bands) > 1)} {', '.join(map(str, bands))} of the files")
    if axes is not None:
        words.append(f"TIFF axes {axes}")
    if reading.get("dicom_rescale"):
        words.append("DICOM's slope and intercept applied")
    return f" ({'; '.join(words)})" if words else ""


def _numbers(values: Any) -> str:
    """One number, or one a channel, as text."""
    words = [f"{float(value):g}" for value in values]
    return words[0] if len(set(words)) == 1 else f"({', '.join(words)})"
