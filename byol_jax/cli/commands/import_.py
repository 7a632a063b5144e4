"""`byol-jax import FILE --out FILE`: PyTorch's weights, checked against a network, rewritten as .safetensors.

FILE holds a network, or a whole BYOL learner of another library's: then its encoder is written, or with `--layout` all
of it. What is written can be given to `byol-jax train --init-from`; so can the original. This command says beforehand,
and for every tensor, whether it fits.
"""

import argparse
import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from byol_jax.cli import values
from byol_jax.cli.commands.export import add_layout, check_layout
from byol_jax.cli.common import add_choice, add_output, add_which, check_output, folder_for
from byol_jax.cli.networks import network_name
from byol_jax.errors import ConfigurationError, StateDictMismatchError
from byol_jax.runs.network import NETWORKS, SMALL_IMAGES, encoder_from, network_from

if TYPE_CHECKING:
    from byol_jax.types import Encoder
    from interop import WeightFile

__all__ = ["USAGE", "add_arguments", "check", "run"]

USAGE = "FILE --out FILE [--network NAME] [--which online|target | --layout NAME] [options]"
UNTOLD, IMAGE_SIZE = "resnet18", 224
DTYPES = ("float32", "keep")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options."""
    parser.add_argument(
        "file",
        type=values.weight_file,
        metavar="FILE",
        help="a .pt, .pth, .ckpt, .safetensors or .npz, of a network or a BYOL learner, or DeepMind's .pkl",
    )
    add_output(parser, ".safetensors", text="the same weights")
    parser.add_argument(
        "--network",
        type=network_name,
        metavar="NAME",
        help=f"what they must fit, one of {', '.join(NETWORKS)} (what the file's names tell, else {UNTOLD})",
    )
    parser.add_argument(
        "--channels", type=values.positive_int, default=3, metavar="N", help="1 for grey, 3 for colour (3)"
    )
    parser.add_argument(
        "--image-size",
        type=values.image_size,
        metavar="N",
        help="pixels; matters for small_cnn and vision transformers (as the weights tell)",
    )
    parser.add_argument(
        "--dtype",
        type=values.one_of(DTYPES),
        metavar="TYPE",
        help="of a file in other types than float32: float32 converts, keep writes them as they are (refused)",
    )
    add_choice(parser, "FILE")
    add_which(parser)
    add_layout(parser)


def check(options: argparse.Namespace) -> list[str]:
    """What is wrong with the options together."""
    problems = check_output(options.out, overwrite=options.overwrite, inputs={"FILE": options.file})
    problems += check_layout(options)
    if options.layout is not None and options.dtype == "keep":
        problems.append("--dtype keep with --layout: a learner is float32 throughout, give --dtype float32")
    return problems


def run(options: argparse.Namespace) -> int:
    """Checks and writes; prints what was written and the file's name."""
    import interop

    weights = interop.open_weights(options.file, which_weights=options.which_weights, prefix=options.prefix)
    network = weights.network(which=options.which)
    if not network:
        raise ConfigurationError(f"{options.file}: holds no {options.which} network")
    told = options.network or _name_by_weights(weights)
    name = told or UNTOLD
    if options.image_size is None:
        options.image_size = _size_by_weights(name, network) or IMAGE_SIZE
    encoder = encoder_from(network_from(name, options.channels, network))
    with folder_for(options.out), _guess_said(options.file, guess=told is None):
        if options.layout is None:
            written = _write_network(options, name, encoder, weights)
        else:
            written = _write_learner(options, name, encoder, weights)
    print(f"{written}{', from ' + weights.title if weights.title else ''}: {options.out}")
    return 0


@contextlib.contextmanager
def _guess_said(file: Path, *, guess: bool) -> Iterator[None]:
    """Says first, where the weights don't fit a network that is only a guess, that it is one."""
    try:
        yield
    except StateDictMismatchError as error:
        if not guess or "--prefix" in str(error):  # then the guess is right, and the way out is said
            raise
        raise StateDictMismatchError(
            f"{file}: its names tell no network that is known here, and {UNTOLD} is only a guess: give --network NAME, "
            "or for another library's network byol-jax embed or train --network torchvision:NAME --init-from FILE; "
            f"{error}"
        ) from error


def _size_by_weights(name: str, network: Mapping[str, Any]) -> int | None:
    """The side of square images that a small_cnn's classifier or a transformer's positions are for; None of others."""
    for positions, patches in (("encoder.pos_embedding", "conv_proj.weight"), ("pos_embed", "patch_embed.proj.weight")):
        if positions in network and patches in network:
            count = network[positions].shape[1] - 1  # one is the class token's
            side = math.isqrt(count)
            return side * network[patches].shape[-1] if side * side == count else None
    classifier = network.get("10.weight")
    if name != "small_cnn" or classifier is None:
        return None
    side = math.isqrt(classifier.shape[-1] // 128)
    return 8 * side if 128 * side * side == classifier.shape[-1] else None


def _name_by_weights(weights: "WeightFile") -> str | None:
    """The native network that the names and shapes are those of; None where they tell nothing.

    Raises:
        ConfigurationError: they tell one that isn't native.
    """
    told = weights.architecture
    name = told.network_option or told.name + (SMALL_IMAGES if "3x3 stem" in told.details else "")
    if told.name != "unknown" and name not in NETWORKS:
        raise ConfigurationError(
            f"{weights.where}: its network is none of {', '.join(NETWORKS)}, but {told.name};"
            " --network NAME lists what differs"
        )
    return name if name in NETWORKS else None


def _write_network(options: argparse.Namespace, name: str, encoder: "Encoder", weights: "WeightFile") -> str:
    """Checks the encoder alone and writes it; says what was written, and warns of what computes otherwise."""
    import jax

    import interop

    like = jax.eval_shape(lambda: encoder.init(jax.random.key(0), _image_shape(options)))
    dtype = None if options.dtype is None else "like"
    variables = weights.variables(encoder, like=like, which=options.which, dtype=dtype)
    state_dict = interop.encoder_state_dict(encoder, variables)
    if options.dtype == "keep":
        state_dict = _in_own_types(state_dict, weights.network(state_dict, which=options.which), file=options.file)
    interop.save_state_dict(options.out, state_dict)
    weights.warn_of_difference(encoder)
    return f"{len(state_dict)} tensors of {name}"


def _in_own_types(state_dict: Mapping[str, Any], own: Mapping[str, Any], *, file: Path) -> dict[str, Any]:
    """The file's own arrays in place of the network's; counters that the file lacks stay.

    Raises:
        ConfigurationError: the file has a tensor by another name, so that its type isn't known.
    """
    others = [name for name in state_dict if name not in own and not name.endswith("num_batches_tracked")]
    if others:
        raise ConfigurationError(
            f"{file}: --dtype keep: its names aren't those of {len(others)} tensors ({others[0]}, …), whose types "
            "aren't known: give --dtype float32"
        )
    return {name: own.get(name, array) for name, array in state_dict.items()}


def _write_learner(options: argparse.Namespace, name: str, encoder: "Encoder", weights: "WeightFile") -> str:
    """Checks the whole learner against one with heads of its sizes and writes it; says what was written."""
    import jax
    import jax.numpy as jnp
    import optax

    import interop
    from byol_jax import make_learner

    if not weights.source:
        raise ConfigurationError(
            f"{options.file}: holds no learner that can be read whole; without --layout its network is imported alone"
        )
    heads, width = _head_options(weights)
    images = jax.ShapeDtypeStruct((1, *_image_shape(options)), jnp.float32)
    for hidden_layer in (-2, -1):  # before a classifier, and of a network that has none
        learner = make_learner(
            encoder,
            image_size=options.image_size,
            num_channels=options.channels,
            hidden_layer=hidden_layer,
            optimizer=optax.identity(),
            **heads,
        )
        shapes = jax.eval_shape(learner.init, jax.random.key(0))  # nothing of it is kept, so nothing need be drawn
        if width == jax.eval_shape(learner.embed, shapes, images).shape[-1]:
            break
    like = shapes.replace(step=jnp.zeros((), jnp.int32), key=jax.random.key(0))
    state = weights.learner(encoder, like=like, dtype=None if options.dtype is None else "like")
    interop.save_byol_checkpoint(options.out, state, layout=options.layout)
    return f"learner of {name} as {options.layout} has it"


def _image_shape(options: argparse.Namespace) -> tuple[int, ...]:
    from byol_jax.image_size import image_sides

    return (*image_sides(options.image_size), options.channels)


def _head_options(weights: "WeightFile") -> tuple[dict[str, Any], int | None]:
    """`make_learner`'s options that give heads of the file's sizes, as far as they tell, and the representation's."""
    projector, predictor = (
        [layer for layer in weights.heads[head] if layer["kind"] == "linear"] for head in ("projector", "predictor")
    )
    options: dict[str, Any] = {
        "use_momentum": not weights.layout.endswith("-sim"),
        "simplicial_embeddings": weights.layout.startswith("D1"),
    }
    if predictor:
        options |= {"projection_size": predictor[0]["in"], "prediction_hidden_size": predictor[0]["out"]}
    if len(projector) > 1:  # the last layer but one, behind simplicial embeddings too
        options |= {"projection_hidden_size": projector[-2]["out"]}
    return options, projector[0]["in"] if projector else None
