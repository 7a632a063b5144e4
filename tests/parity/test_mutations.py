"""The comparison with byol-pytorch sees each mistake that is easily made: seven, one at a time, each caught by it.

A mutant is a learner made of ours by `replace`, one option changed, or one function of a network patched before the
learner is made (and it must have been called). The table says where the comparison first sees it.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

from byol_jax import Learner, LossAux, Variables, ema_update, nets, normalized_mse
from byol_jax.nets import layers
from byol_jax.views import two_views
from tests.parity.trajectory import SMALL, TOLERANCE, Case, Network, check, torch_small_cnn

pytestmark = pytest.mark.usefixtures("one_thread")

CASE = Case("flip", "adamw", -2, "constant", False)
DECAY = 0.99


def biased_variance(real: Callable) -> Callable:
    """The running variance without the factor n / (n - 1)."""

    def batch_norm(x: Any, scale: Any, bias: Any, mean: Any, var: Any, *, momentum: float = 0.1, **options: Any) -> Any:
        y, new_mean, new_var = real(x, scale, bias, mean, var, momentum=momentum, **options)
        count = x.size // x.shape[-1]
        kept = (1 - momentum) * var
        return y, new_mean, kept + (new_var - kept) * ((count - 1) / count)

    return batch_norm


def same_padding(real: Callable) -> Callable:
    """TensorFlow's padding in place of PyTorch's."""

    def conv2d(x: Any, kernel: Any, *, stride: int, padding: Any) -> Any:
        return real(x, kernel, stride=stride, padding="SAME")

    return conv2d


def all_trained(learner: Learner) -> Learner:
    """The optimiser sees every parameter, with a gradient of zero where there is none."""
    every = jax.tree.map(lambda _: True, learner.settings.trained)
    return Learner(replace(learner.settings, trained=every))


def loss_by_hand(learner: Learner, *, crossed: bool) -> Learner:
    """The loss written out with the learner's own networks; view 1 is compared with view 2, or with view 1."""

    def loss(params: Any, state: Any, images: Any, key: Any) -> Any:
        views = jnp.stack(two_views(learner.settings, images, key), axis=1)  # [N, 2, H, W, C]
        both = views.reshape(-1, *views.shape[2:])
        outputs, online = learner.online_apply(Variables(params, state.online.stats), both, train=True)
        targets, target = learner.target_apply(state.target, both, train=True)
        predictions, projections = (rows.reshape(-1, 2, rows.shape[-1]) for rows in (outputs.prediction, targets[1]))
        compared = jax.lax.stop_gradient(projections[:, ::-1] if crossed else projections)
        value = normalized_mse(predictions, compared).sum(axis=1).mean()
        return value, LossAux(online, target, outputs, {})

    return learner.replace(loss=loss)


def average_first(learner: Learner) -> Learner:
    """The target moves towards the online parameters as they were before the optimiser's step."""

    def step(state: Any, images: Any) -> Any:
        new, metrics = learner.step(state, images)
        online = {name: part for name, part in state.online.params.items() if name != "predictor"}
        return new.replace(target=Variables(ema_update(state.target.params, online, DECAY), new.target.stats)), metrics

    return learner.replace(step=step)


def buffers_averaged(learner: Learner) -> Learner:
    """The target's batch-norm statistics are averages of the online network's, as its parameters are."""

    def step(state: Any, images: Any) -> Any:
        new, metrics = learner.step(state, images)
        online = {name: part for name, part in new.online.stats.items() if name != "predictor"}
        averaged = ema_update(state.target.stats, online, DECAY)
        stats = jax.tree.map(lambda own, other: other if own.ndim else own, new.target.stats, averaged)
        return new.replace(target=Variables(new.target.params, stats)), metrics

    return learner.replace(step=step)


class Patch(NamedTuple):
    """A function (module, name) of a network and what becomes of it."""

    module: Any
    name: str
    change: Callable


class Mutant(NamedTuple):
    """Another learner, or a function patched; at least how many of loss and leaves differ, and all which."""

    mistake: Patch | Callable[[Learner], Learner]
    at_least: int
    differing: str


EVEN = Network(lambda: torch_small_cnn(16), SMALL.ours, 16)
"""Maps of even size, where TensorFlow's padding gives the same shapes and other numbers."""

MUTANTS = {
    "biased running variance": Mutant(
        Patch(layers, "batch_norm_train", biased_variance), 7, r"(online|target) \S+/var"
    ),
    "decay on unused layers": Mutant(all_trained, 4, r"(online|target) encoder/7/(kernel|bias)"),
    "padding SAME": Mutant(Patch(nets.cnn, "conv2d", same_padding), 30, r"loss|\S+ \S+"),
    "targets not crossed": Mutant(partial(loss_by_hand, crossed=False), 20, r"loss|\S+ \S+/(kernel|bias|scale)"),
    "average before the optimiser": Mutant(average_first, 10, r"target \S+/(kernel|bias|scale)"),
    "target's buffers averaged": Mutant(buffers_averaged, 6, r"target \S+/(mean|var)"),
}


def differing(message: str) -> list[str]:
    """The names in the comparison's message, which must be about the first step."""
    listed = re.fullmatch(r"after step 1 \d+ of 56 differ: (.*)", message.splitlines()[0])
    assert listed is not None, message
    return [part.rpartition(" by ")[0] for part in listed[1].split(", ")]


@pytest.mark.slow
@pytest.mark.parametrize("network", [SMALL, EVEN], ids=["odd", "even"])
def test_nothing_changed_passes(network: Network) -> None:
    with jax.enable_x64(True):
        assert check(network, CASE).largest <= TOLERANCE


@pytest.mark.slow
def test_the_loss_by_hand_passes_with_its_targets_crossed() -> None:
    with jax.enable_x64(True):
        assert check(EVEN, CASE, change=partial(loss_by_hand, crossed=True)).largest <= TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, calls = MUTANTS[name], []
    if isinstance(patch := one.mistake, Patch):
        change, changed = None, patch.change(getattr(patch.module, patch.name))

        def mutant(*arguments: Any, **options: Any) -> Any:
            calls.append(name)
            return changed(*arguments, **options)

        monkeypatch.setattr(patch.module, patch.name, mutant)
    else:
        change = one.mistake
    with jax.enable_x64(True), pytest.raises(AssertionError) as caught:
        check(EVEN, CASE, change=change)
    assert calls or change, "the mutant was never called"
    names = differing(str(caught.value))
    assert len(names) >= one.at_least
    assert all(re.fullmatch(one.differing, name) for name in names), names
    assert ("loss" in names) == ("loss" in one.differing)


@pytest.mark.long
def test_separate_views_are_caught() -> None:
    with jax.enable_x64(True), pytest.raises(AssertionError) as caught:
        check(EVEN, CASE, views="separate")
    names = differing(str(caught.value))
    assert {"loss", "online encoder/1/var", "target projector/1/mean", "online predictor/3/kernel"} <= set(names)
