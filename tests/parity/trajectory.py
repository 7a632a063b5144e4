"""byol-pytorch and a learner of ours side by side: the same start, the same images, compared after every step."""

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import torchvision
from byol_pytorch import BYOL
from torch import nn

from byol_jax import Learner, make_learner, nets, schedules
from byol_jax.tree import flatten
from interop import load_byol_checkpoint, load_state_dict, save_byol_checkpoint
from tests.parity.reference import Leaf, flip, native, our_gradients, our_networks, torch_learner

QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
"""No LLVM optimisations, no fusion emitters: these networks compile in a third of the time and compute the same."""

OPTIMIZERS: dict[str, tuple[Callable[[Any], torch.optim.Optimizer], optax.GradientTransformation]] = {
    "adam": (lambda parameters: torch.optim.Adam(parameters, lr=3e-4), optax.adam(3e-4)),
    "adamw": (
        lambda parameters: torch.optim.AdamW(parameters, lr=3e-4, weight_decay=0.1),
        optax.adamw(3e-4, weight_decay=0.1),
    ),
    "sgd": (
        lambda parameters: torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=0.01),
        optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.01, momentum=0.9)),
    ),
}
"""By name: torch's and optax's. Torch's SGD adds the decay to the gradient, before the momentum. At a rate
of 0.05 rounding grew twentyfold a step in a resnet18 with simplicial embeddings: from 2e-14 to 9e-10 in five."""


STEPS, BATCH = 5, 8
TOLERANCE = 1e-9
ROUNDING, OF_ROUNDING = 1e-12, 1e-8
"""A bias in front of a batch norm has a gradient of zero, of which rounding leaves about 1e-15, and Adam divides that
by its ε of 1e-8: such leaves, told by gradients below `ROUNDING`, differed by up to 8.8e-10; `OF_ROUNDING` is let."""

HEADS = {"projection_size": 16, "projection_hidden_size": 32}
SCHEDULE = schedules.target_decay(0.9, 2 * STEPS)


class Network(NamedTuple):
    """One network twice, the images' side, and how our leaves are named."""

    theirs: Callable[[], nn.Module]
    ours: Callable[[], Any]
    size: int
    leaf: Leaf = native


def torch_small_cnn(size: int) -> nn.Module:
    return eval(nets.cnn.torch_expression((5, 7), 3, 11, size), {"nn": nn})


SMALL = Network(lambda: torch_small_cnn(17), lambda: nets.small_cnn((5, 7), num_classes=11), 17)
"""Odd sizes everywhere: 17 pixels become 8, then 4, by kernels of 4 and 3 with stride 2 and padding 1."""

RESNET18 = Network(torchvision.models.resnet18, nets.resnet18, 32)


RESULT = "largest difference {:.1e}; {:.1e} in biases whose gradient is rounding alone"


class Case(NamedTuple):
    """One combination; `target` is "constant" or "scheduled" decay, or "simsiam"."""

    second_view: str
    optimizer: str
    hidden_layer: Any
    target: str
    simplicial: bool


class Followed(NamedTuple):
    """Our state after the last step, our compiled step, and the largest |ours - theirs| / (1 + |theirs|) met: of the
    loss and all leaves but those without a true gradient, and of those."""

    state: Any
    advance: Callable
    largest: float
    of_rounding: float


def blank(learner: Any, *, step: int = 0) -> Any:
    """A state of zeros, which is what the optimisers above start from; `learner.init` compiles a hundred programs."""
    shapes = jax.eval_shape(learner.init, jax.random.key(0)).replace(key=None)
    state = jax.tree.map(lambda leaf: jnp.array(np.zeros(leaf.shape, leaf.dtype)), shapes)
    return state.replace(key=jax.random.key(5), step=jnp.asarray(step, jnp.int32))


def compiled(learner: Any, options: Mapping[str, Any]) -> Callable:
    """`(state, images) -> (loss, state)`: the loss of `learner.loss`, whose metric is float32, and the step."""

    def advance(state: Any, images: Any) -> Any:
        value, _ = learner.loss(state.online.params, state, images, jax.random.fold_in(state.key, state.step))
        return value, learner.step(state, images)[0]

    return jax.jit(advance, donate_argnums=0, compiler_options=dict(options))


def torch_images(batch: np.ndarray) -> torch.Tensor:
    """[N, C, H, W], in that order in memory too: a permuted view is channels_last, and so is every map made from it.
    Then byol-pytorch's flattening of a hooked map copies, and misses what a later in-place ReLU writes into the map."""
    return torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2)))


def torch_step(reference: BYOL, optimizer: torch.optim.Optimizer, batch: np.ndarray, decay: float | None) -> float:
    """byol-pytorch's step as its users write it; the loss. `decay` sets the target's, None leaves it."""
    loss = reference(torch_images(batch))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if reference.use_momentum:
        if decay is not None:
            reference.target_ema_updater.beta = decay
        reference.update_moving_average()
    return loss.item()


def follow(
    reference: BYOL,
    optimizer: torch.optim.Optimizer,
    learner: Any,
    batches: Iterable[np.ndarray],
    *,
    scheduled: bool = False,
    options: Mapping[str, Any] = QUICK,
    leaf: Leaf = native,
) -> Followed:
    """Both from the reference's state, through the loader, step by step; raises at the first step that differs."""
    state = load_byol_checkpoint(reference.state_dict(), like=blank(learner))
    start, advance = our_networks(reference, leaf)["online"]["params"], compiled(learner, options)
    largest, of_rounding = 0.0, 0.0
    for number, batch in enumerate(batches):
        value, state = advance(state, batch)
        wanted = torch_step(reference, optimizer, batch, float(SCHEDULE(number)) if scheduled else None)
        noisy = {
            name for name, leaf in our_gradients(reference, leaf).items() if leaf is not None and is_rounding(leaf)
        }
        exact, loose = compare(number, value, state, wanted, our_networks(reference, leaf), noisy)
        largest, of_rounding = max(largest, exact), max(of_rounding, loose)
    unused = [name for name, gradient in our_gradients(reference, leaf).items() if gradient is None]
    for params in (flatten(state.online.params), our_networks(reference, leaf)["online"]["params"]):
        moved = [name for name in unused if not np.array_equal(params[name], start[name])]
        assert not moved, f"without gradient, yet changed: {', '.join(moved)}"
    return Followed(state, advance, largest, of_rounding)


def is_rounding(gradient: np.ndarray) -> bool:
    return float(np.max(np.abs(gradient))) < ROUNDING


def compare(
    number: int, value: Any, state: Any, wanted: float, networks: Any, noisy: Collection[str]
) -> tuple[float, float]:
    """The largest difference after step `number`, of all but the `noisy` parameters and of those.

    Raises one line that names all leaves that differ, largest first.
    """
    found = {"loss": difference(np.asarray(value), np.asarray(wanted))}
    for network, kinds in networks.items():
        for kind, leaves in kinds.items():
            ours = flatten(getattr(getattr(state, network), kind))
            assert set(ours) == set(leaves), f"{network}.{kind}: other leaves"
            found |= {f"{network} {name}": difference(np.asarray(ours[name]), leaf) for name, leaf in leaves.items()}
    limits = {name: OF_ROUNDING if name.rpartition(" ")[2] in noisy else TOLERANCE for name in found}
    wrong = sorted((name for name in found if not found[name] <= limits[name]), key=lambda name: -found[name])
    listed = ", ".join(f"{name} by {found[name]:.1e}" for name in wrong)
    assert not wrong, f"after step {number + 1} {len(wrong)} of {len(found)} differ: {listed}"
    by_limit = [[found[name] for name in found if limits[name] == limit] for limit in (TOLERANCE, OF_ROUNDING)]
    return max(by_limit[0]), max(by_limit[1], default=0.0)


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    if not np.issubdtype(theirs.dtype, np.floating):
        return 0.0 if np.array_equal(ours, theirs) else np.inf
    return float(np.max(np.abs(ours - theirs) / (1 + np.abs(theirs)), initial=0.0))


def both_learners(network: Network, case: Case, dtype: str, *, seed: int = 0, **options: Any) -> tuple[Any, Any]:
    """byol-pytorch's and ours, in float32 or float64; `options` are further ones of `make_learner`."""
    momentum = case.target != "simsiam"
    torch.manual_seed(seed)
    reference = torch_learner(
        network.theirs(),
        image_size=network.size,
        second_view=flip if case.second_view == "flip" else nn.Identity(),
        dtype=getattr(torch, dtype),
        seed=seed,
        hidden_layer=case.hidden_layer,
        use_momentum=momentum,
        use_simplicial_embeddings=case.simplicial,
        **HEADS,
    )
    ours = {
        "image_size": network.size,
        "hidden_layer": case.hidden_layer,
        "augment_fn": lambda key, image: image,
        "augment_fn2": lambda key, image: image[:, ::-1] if case.second_view == "flip" else image,
        "use_momentum": momentum,
        "simplicial_embeddings": case.simplicial,
        "moving_average_decay": SCHEDULE if case.target == "scheduled" else 0.99,
        "optimizer": OPTIMIZERS[case.optimizer][1],
        "dtype": dtype,
    }
    return reference, make_learner(network.ours(), **ours | HEADS | options)


def check(
    network: Network,
    case: Case,
    *,
    options: Mapping[str, Any] = QUICK,
    change: Callable[[Learner], Learner] | None = None,
    **changes: Any,
) -> Followed:
    """Five steps in float64, compared; `changes` are options that only our learner gets, `change` another learner."""
    images = some_images(network)
    reference, learner = both_learners(network, case, "float64", **changes)
    learner = learner if change is None else change(learner)
    optimizer = OPTIMIZERS[case.optimizer][0](reference.parameters())
    scheduled = case.target == "scheduled"
    return follow(reference, optimizer, learner, images, scheduled=scheduled, options=options, leaf=network.leaf)


def some_images(network: Network, count: int = STEPS) -> np.ndarray:
    return np.random.default_rng(1).random((count, BATCH, network.size, network.size, 3))


def named(case: Case) -> str:
    return " ".join([*map(str, case[:-1]), "simplicial" if case.simplicial else "plain"])


def check_there_and_back(network: Network, case: Case, folder: Path, options: Any = QUICK) -> np.ndarray:
    """Five steps compared; then a new learner of theirs loads what ours saved, and has our next loss.

    Returns the largest difference met, of all that has a gradient or a value of its own, and of the rest.
    """
    with jax.enable_x64(True):
        state, advance, *largest = check(network, case, options=options)
        save_byol_checkpoint(folder / "learner.safetensors", state, layout="byol_pytorch")
        batch = some_images(network, STEPS + 1)[-1]
        ours = float(advance(state, batch)[0])
        theirs, _ = both_learners(network, case, "float64", seed=1)
    saved = load_state_dict(folder / "learner.safetensors")
    theirs.load_state_dict({key: torch.from_numpy(array) for key, array in saved.items()}, strict=True)
    np.testing.assert_allclose(ours, theirs(torch_images(batch)).item(), rtol=1e-12)
    return np.array(largest)
