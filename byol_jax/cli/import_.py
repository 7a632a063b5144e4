"""`byol-jax import FILE --out FILE`: a PyTorch state dict, checked against a network, rewritten as .safetensors.

What is written can be given to `byol-jax train --init-from`; so can the original. This command says beforehand, and for
every tensor, whether it fits.
"""

import argparse

from byol_jax.cli import values
from byol_jax.cli.common import add_output, check_output, folder_for
from byol_jax.cli.networks import NETWORKS, encoder_from, network_from, network_name

__all__ = ["USAGE", "add_arguments", "check", "run"]

USAGE = "FILE --out FILE [--network NAME] [options]"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument(
        "file", type=values.existing_file, metavar="FILE", help="a .pt, .pth, .ckpt, .safetensors or .npz"
    )
    add_output(parser, ".safetensors", text="the same weights")
    parser.add_argument(
        "--network",
        type=network_name,
        default="resnet18",
        metavar="NAME",
        help=f"what they must fit, one of {', '.join(NETWORKS)} (resnet18)",
    )
    parser.add_argument("--channels", type=values.channels, default=3, metavar="N", help="1 for grey, 3 for colour (3)")
    parser.add_argument(
        "--image-size", type=values.image_size, default=224, metavar="N", help="pixels; matters for small_cnn (224)"
    )


def check(options: argparse.Namespace) -> list[str]:
    """What is wrong with the options together."""
    return check_output(options.out, overwrite=options.overwrite)


def run(options: argparse.Namespace) -> int:
    """Checks and writes; prints the number of tensors and the file's name."""
    import jax

    import interop

    given = interop.load_state_dict(options.file)
    encoder = encoder_from(network_from(options.network, options.channels, given))
    size = options.image_size if isinstance(options.image_size, tuple) else (options.image_size,) * 2
    like = jax.eval_shape(lambda: encoder.init(jax.random.key(0), (*size, options.channels)))
    variables = interop.from_torch_state_dict(given, like=like)
    state_dict = interop.to_torch_state_dict(variables)
    with folder_for(options.out):
        interop.save_state_dict(options.out, state_dict)
    print(f"{len(state_dict)} tensors of {options.network}: {options.out}")
    return 0
