"""The same numbers as byol-pytorch 0.9.1 itself, step by step, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from torch import nn

from byol_jax import make_learner, nets
from byol_jax.tree import flatten, unflatten
from byol_jax.types import Variables
from tests.parity.reference import flip, our_networks, torch_learner

SIZE, CHANNELS, BATCH, STEPS = 16, 3, 8, 3
TOLERANCE = 1e-9  # measured: at most 4e-12 in the losses and 3e-11 in any leaf, over the variants below


def torch_small_cnn() -> nn.Sequential:
    torch.manual_seed(0)
    return eval(nets.cnn.torch_expression(channels=CHANNELS, image_size=SIZE), {"nn": nn})


def in_torch(learner, optimizer, images):
    """Losses, and the networks after every step."""
    losses = []
    for batch in images:
        loss = learner(torch.from_numpy(batch).permute(0, 3, 1, 2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if learner.use_momentum:
            learner.update_moving_average()
        losses.append(loss.item())
    return losses, our_networks(learner)


def in_jax(start, optimizer, images, **options):
    """The same from the same start."""
    learner = make_learner(
        nets.small_cnn(),
        image_size=SIZE,
        augment_fn=lambda key, image: image,
        augment_fn2=lambda key, image: image[:, ::-1],
        projection_size=16,
        projection_hidden_size=32,
        optimizer=optimizer,
        dtype=jnp.float64,
        **options,
    )
    state = learner.init(jax.random.key(0))

    def placed(network, like):
        return Variables(
            *(
                jax.tree.map(lambda a, b: jnp.asarray(a, b.dtype), unflatten(start[network][kind]), getattr(like, kind))
                for kind in ("params", "stats")
            )
        )

    state = state.replace(online=placed("online", state.online))
    if options.get("use_momentum", True):
        state = state.replace(target=placed("target", state.target))
    step, losses = jax.jit(learner.step), []
    for batch in images:
        state, metrics = step(state, batch)
        losses.append(metrics["loss"])
    return np.array(losses), state


VARIANTS = {
    "default": {},
    "early layer": {"hidden_layer": 3},
    "by name": {"hidden_layer": "5"},
    "output": {"hidden_layer": -1},
    "simsiam": {"use_momentum": False},
    "simplicial": {"simplicial_embeddings": True},
    "simplicial simsiam": {"simplicial_embeddings": True, "use_momentum": False},
    "slow target": {"moving_average_decay": 0.9},
}


@pytest.mark.parametrize(
    "variant",
    [pytest.param(name, marks=[] if name in ("default", "simsiam") else pytest.mark.slow) for name in VARIANTS],
)
def test_trajectory_is_byol_pytorchs(variant: str) -> None:
    options = {"hidden_layer": -2} | VARIANTS[variant]
    theirs = dict(options)
    theirs["use_simplicial_embeddings"] = theirs.pop("simplicial_embeddings", False)
    reference = torch_learner(
        torch_small_cnn(),
        image_size=SIZE,
        second_view=flip,
        dtype=torch.float64,
        projection_size=16,
        projection_hidden_size=32,
        **theirs,
    )
    start = our_networks(reference)
    images = np.random.default_rng(1).random((STEPS, BATCH, SIZE, SIZE, CHANNELS))
    optimizer = torch.optim.Adam(reference.parameters(), lr=3e-4)
    wanted_losses, wanted = in_torch(reference, optimizer, images)
    with jax.enable_x64(True):
        losses, state = in_jax(start, optax.adam(3e-4), images, **options)
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-6)  # metrics are float32; the leaves below are exact
    networks = ["online", "target"] if options.get("use_momentum", True) else ["online"]
    for network in networks:
        for kind in ("params", "stats"):
            ours = flatten(getattr(getattr(state, network), kind))
            assert set(ours) == set(wanted[network][kind])
            for name, leaf in ours.items():
                np.testing.assert_allclose(
                    leaf, wanted[network][kind][name], atol=TOLERANCE, rtol=TOLERANCE, err_msg=f"{network} {name}"
                )
