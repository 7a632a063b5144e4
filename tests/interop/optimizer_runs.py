"""The same optimisers twice, torch's and optax's, and runs that are moved midway: with given gradients, and of BYOL."""

import jax
import numpy as np
import optax
import torch
from torch import nn

import interop
from byol_jax import Variables
from byol_jax.tree import unflatten
from tests.parity.reference import native as leaf_of
from tests.parity.reference import one_thread, our_gradients, our_networks
from tests.parity.trajectory import (
    QUICK,
    Case,
    blank,
    both_learners,
    compare,
    compiled,
    is_rounding,
    some_images,
    torch_step,
)

RATE, DECAY = 0.01, 0.1


def rate(step):
    return RATE / (1 + step)


PAIRS = {
    "Adam": (lambda p: torch.optim.Adam(p, lr=RATE), optax.adam(RATE)),
    "Adam, L2": (
        lambda p: torch.optim.Adam(p, lr=RATE, weight_decay=DECAY),
        optax.chain(optax.add_decayed_weights(DECAY), optax.adam(RATE)),
    ),
    "AdamW": (lambda p: torch.optim.AdamW(p, lr=RATE, weight_decay=DECAY), optax.adamw(RATE, weight_decay=DECAY)),
    "momentum": (lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9), optax.sgd(RATE, momentum=0.9)),
    "Nesterov, L2": (
        lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9, nesterov=True, weight_decay=DECAY),
        optax.chain(optax.add_decayed_weights(DECAY), optax.sgd(RATE, momentum=0.9, nesterov=True)),
    ),
    "SGD": (lambda p: torch.optim.SGD(p, lr=RATE), optax.sgd(RATE)),
}
"""By name: torch's and optax's, as the documentation of `from_torch_opt_state` pairs them."""

WRAPPED = {
    "schedule": (PAIRS["Adam"][0], optax.adam(rate)),
    "momentum, schedule": (PAIRS["momentum"][0], optax.sgd(rate, momentum=0.9)),
    "injected schedule": (PAIRS["AdamW"][0], optax.inject_hyperparams(optax.adamw)(rate, weight_decay=DECAY)),
}
"""The same ones around schedules, whose counts must follow."""

PARTS = {
    "parts": (
        PAIRS["Adam"][0],
        optax.partition(
            {"layers": optax.adam(rate), "norm": optax.apply_if_finite(optax.adam(rate), 3)},
            {"0": "layers", "1": "norm", "3": "layers"},
        ),
    ),
}
"""Apart for two kinds of layers."""


def layers(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Linear(4, 2)).double()


def native(arrays):
    """Torch's arrays by their names as parameters of ours."""
    params = {}
    for name, tensor in arrays.items():
        path, array = leaf_of(name, tensor.detach().numpy())
        params[path] = jax.numpy.asarray(array.copy())
    return unflatten(params)


def small(optimizer=PAIRS["Adam"][1]):
    """An optax state for `layers()`, in float32."""
    params = native({name: tensor.float() for name, tensor in layers().named_parameters()})
    with jax.numpy_dtype_promotion("standard"):
        return optimizer.init(params)


def trained(module, make=PAIRS["Adam"][0], *, unused=(), steps=2):
    """An optimiser over a module, after steps with random gradients; none for names that begin with one of `unused`."""
    optimizer = make([*module.parameters()])
    for _ in range(steps):
        for name, tensor in module.named_parameters():
            tensor.grad = None if name.startswith(tuple(unused)) else torch.randn_like(tensor)
        optimizer.step()
    return optimizer


def gradients(step):
    generator = torch.Generator().manual_seed(step)
    named = layers().named_parameters()
    return {name: torch.randn(tensor.shape, generator=generator, dtype=torch.float64) for name, tensor in named}


class TorchRun:
    """A module and its optimiser with a schedule, where there is one."""

    def __init__(self, make, *, scheduled, seed=0):
        self.module = layers(seed)
        self.optimizer, self.scheduled = make(self.module.parameters()), scheduled

    def advance(self, steps):
        for step in steps:
            for name, tensor in self.module.named_parameters():
                tensor.grad = gradients(step)[name]
            if self.scheduled:
                self.optimizer.param_groups[0]["lr"] = rate(step)
            self.optimizer.step()

    def params(self):
        return dict(self.module.named_parameters())


def advance(optimizer, params, opt_state, steps):
    with jax.numpy_dtype_promotion("standard"):
        for step in steps:
            updates, opt_state = optimizer.update(native(gradients(step)), opt_state, params)
            params = optax.apply_updates(params, updates)
    return params, opt_state


def largest_difference(params, run):
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(native(run.params())), strict=True)
    return max(float(np.max(np.abs(np.asarray(ours) - np.asarray(theirs)))) for ours, theirs in pairs)


def moved_runs(pair, *, scheduled=False, there=3, steps=6):
    """Runs with the same gradients, that stayed in torch and that moved: there, and back again a step before the end.

    Returns the largest difference of the parameters after each move.
    """
    make, optimizer = pair
    stayed, left = TorchRun(make, scheduled=scheduled), TorchRun(make, scheduled=scheduled)
    left.advance(range(there))
    params = native(left.params())
    with jax.numpy_dtype_promotion("standard"):
        like = optimizer.init(params)
    opt_state = interop.from_torch_opt_state(left.optimizer.state_dict(), like=like, step=there)
    params, opt_state = advance(optimizer, params, opt_state, range(there, steps))
    stayed.advance(range(steps))
    differences = [largest_difference(params, stayed)]
    back = TorchRun(make, scheduled=scheduled, seed=1)
    written = interop.to_torch_state_dict(Variables(params, {}))
    back.module.load_state_dict({name: torch.from_numpy(array) for name, array in written.items()}, strict=False)
    back.optimizer.load_state_dict(interop.to_torch_opt_state(opt_state, like=back.optimizer.state_dict()))
    back.advance(range(steps, steps + 2))
    stayed.advance(range(steps, steps + 2))
    return [*differences, largest_difference(native(back.params()), stayed)]


def moved_learners(network, pair, folder, *, named, there=2, steps=4, after=2):
    """byol-pytorch's learner for `there` steps, moved, followed by ours up to `steps`; then back, into a new one.

    Returns the largest differences from the learner that stayed in torch, and from ours that stayed here: of losses,
    parameters and statistics; |a - b| / (1 + |b|).
    """
    make, optimizer = pair
    images = some_images(network, steps + after)
    case = Case("flip", "adam", -2, "constant", False)
    with jax.enable_x64(True), one_thread():
        reference, learner = both_learners(network, case, "float64", optimizer=optimizer)
        theirs, step = make(reference.parameters()), compiled(learner, QUICK)
        for batch in images[:there]:
            torch_step(reference, theirs, batch, None)
        state = interop.load_byol_checkpoint(reference.state_dict(), like=blank(learner, step=there))
        names = list(reference.state_dict()) if named else None
        moved = interop.from_torch_opt_state(theirs.state_dict(), like=state, parameter_names=names)
        state = state.replace(opt_state=moved)
        state, from_torch = _together(state, step, reference, theirs, images[there:steps], network)
        interop.save_byol_checkpoint(folder / "learner.safetensors", state, layout="byol_pytorch")
        back, _ = both_learners(network, case, "float64", seed=1)
        saved = interop.load_state_dict(folder / "learner.safetensors")
        back.load_state_dict({key: torch.from_numpy(array) for key, array in saved.items()}, strict=True)
        theirs = make(back.parameters())
        theirs.load_state_dict(interop.to_torch_opt_state(state, like=theirs.state_dict(), parameter_names=names))
        _, from_jax = _together(state, step, back, theirs, images[steps:], network)
    return from_torch, from_jax


def _together(state, step, reference, optimizer, batches, network):
    largest = 0.0
    for number, batch in enumerate(batches):
        value, state = step(state, batch)
        wanted = torch_step(reference, optimizer, batch, None)
        given = {name: leaf for name, leaf in our_gradients(reference, network.leaf).items() if leaf is not None}
        noisy = {name for name, leaf in given.items() if is_rounding(leaf)}
        exact, _ = compare(number, value, state, wanted, our_networks(reference, network.leaf), noisy)
        largest = max(largest, exact)
    return state, largest
