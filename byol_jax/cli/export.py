"""`byol-jax export RUN --out FILE`: the trained encoder as a PyTorch state dict, its own names or torchvision's."""

import argparse

from byol_jax.cli.common import add_output, add_run, add_which, check_output, folder_for

__all__ = ["USAGE", "WEIGHT_FILES", "add_arguments", "check", "run"]

USAGE = "RUN --out FILE [--which online|target] [options]"
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".npz")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    add_run(parser)
    add_output(parser, *WEIGHT_FILES, text="the weights")
    add_which(parser)


def check(options: argparse.Namespace) -> list[str]:
    """What is wrong with the options together."""
    return check_output(options.out, overwrite=options.overwrite)


def run(options: argparse.Namespace) -> int:
    """Writes the encoder's weights; prints the file's name."""
    import interop
    from byol_jax import encoder_variables
    from byol_jax.artifacts import encoder_state_dict
    from byol_jax.cli.opened_run import open_run

    opened = open_run(options.run, options.which)
    state_dict = encoder_state_dict(opened.encoder, encoder_variables(opened.state, options.which))
    with folder_for(options.out):
        interop.save_state_dict(options.out, state_dict)
    name, step = opened.config["network"]["name"], int(opened.state.step)
    print(f"{len(state_dict)} tensors of {name} after step {step}: {options.out}")
    return 0
