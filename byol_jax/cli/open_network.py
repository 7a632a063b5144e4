"""A network without a run, as `embed` and `preview` see it: everything is checked that training would check.

A learner with heads of width 1, which nothing uses, stands around it, so that the code that prepares images and finds
layers is that of a run.
"""

import argparse
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from byol_jax.byol import Learner, encoder_variables, make_learner
from byol_jax.cli.networks import warn_of_layer
from byol_jax.errors import HiddenLayerNotFoundError
from byol_jax.hidden import OUTPUT, resolve_hidden_layer, top_level
from byol_jax.image_size import image_sides
from byol_jax.ops.precision import standard_promotion
from byol_jax.recipe import DEFAULT, augmentations, mean_std
from byol_jax.runs.network import NamedNetwork
from byol_jax.types import Encoder, TrainState

__all__ = ["NetworkAlone", "open_network", "summary"]


class NetworkAlone(NamedTuple):
    """A network as `embed` uses it.

    Attributes:
        image_shape: of one image, [H, W, C].
        hidden_layer: the representation's layer, by name, or -1.
        encoder, learner, state: the network, and around it what prepares images; heads are of width 1.
    """

    image_shape: tuple[int, int, int]
    hidden_layer: str | int
    encoder: Encoder
    learner: Learner
    state: TrainState


def open_network(
    options: argparse.Namespace,
    make_network: Callable[..., NamedNetwork],
    *,
    image_size: int | tuple[int, int],
    channels: int,
    seed: int = 0,
    value_range: Any = None,
) -> NetworkAlone:
    """The network of `--network`, with the weights of `--weights`, `--init-from` or `seed`.

    Raises:
        ConfigurationError, InteropError's children: it can't take such images, or has no such layer or weights.
    """
    import interop

    weights = None
    if options.init_from is not None:
        weights = interop.open_weights(options.init_from, which_weights=options.which_weights, prefix=options.prefix)
    start = None if weights is None else weights.network()
    hidden_layer = DEFAULT.hidden_layer if options.hidden_layer is None else options.hidden_layer
    network, encoder = make_network(image_size=image_size, channels=channels, seed=seed, start=start)
    warn_of_layer(network, hidden_layer)
    view, _ = augmentations("none", image_size)
    learner = make_learner(
        encoder,
        image_size=image_size,
        hidden_layer=hidden_layer,
        projection_size=1,
        projection_hidden_size=1,
        use_momentum=False,
        num_channels=channels,
        augment_fn=view,
        value_range=value_range,
        normalize=mean_std(channels, network.get("normalize")),
        optimizer=optax.identity(),
    )
    state = learner.init(jax.random.key(seed))
    if weights is not None:
        state = weights.start_encoder(encoder, state)
    height, width = image_sides(image_size)
    layer = resolve_hidden_layer(encoder.hidden_layers(encoder_variables(state)), hidden_layer)
    return NetworkAlone((height, width, channels), layer, encoder, learner, state)


def summary(name: str, network: NetworkAlone) -> list[str]:
    """Lines for a person: what goes in, how many parameters, how wide each child's output is; nothing is computed."""
    variables = encoder_variables(network.state)
    images = jax.ShapeDtypeStruct((2, *network.image_shape), np.float32)
    size = jax.eval_shape(network.learner.embed, network.state, images).shape[1]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables.params))
    layer = "the output" if network.hidden_layer == OUTPUT else network.hidden_layer
    shape = " x ".join(map(str, network.image_shape))
    widths = {child: _width(network, child, images) for child in top_level(network.encoder.hidden_layers(variables))}
    longest = max(map(len, widths), default=0)
    return [
        f"{name} takes {shape}: {parameters:,} parameters, {size:,} features at {layer}",
        *(f"  {child:{longest}}  {width}" for child, width in widths.items()),
    ]


def _width(network: NetworkAlone, child: str, images: Any) -> str:
    """How many numbers a child gives for an image; "-" where it gives none."""

    def features(variables: Any, images: Any) -> Any:
        return network.encoder.apply(variables, images, train=False, hidden_layer=child, key=None, axis_name=None)[0]

    try:
        with standard_promotion():
            shape = jax.eval_shape(features, encoder_variables(network.state), images).shape
    except HiddenLayerNotFoundError:
        return "-"
    return f"{int(np.prod(shape[1:])):,}"
