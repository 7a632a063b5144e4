"""The comparison with byol-pytorch sees each mistake that is easily made: seven, one at a time, each caught by it.

A mutant is one function of byol_jax replaced, or one option changed, before the learner is made; each learner is
compiled anew, and a replaced function must have been called. The table says where the comparison first sees it.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import pytest

from byol_jax import byol, nets
from byol_jax.ema import ema_update
from byol_jax.nets import layers
from byol_jax.types import Variables
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


def all_trained(_: Callable) -> Callable:
    """The optimiser sees every parameter, with a gradient of zero where there is none."""
    return lambda s, params: params


def same_padding(real: Callable) -> Callable:
    """TensorFlow's padding in place of PyTorch's."""

    def conv2d(x: Any, kernel: Any, *, stride: int, padding: Any) -> Any:
        return real(x, kernel, stride=stride, padding="SAME")

    return conv2d


def not_crossed(real: Callable) -> Callable:
    """View 1 is compared with view 1."""

    def both_views(s: Any, apply: Callable, *arguments: Any) -> Any:
        outputs, stats = real(s, apply, *arguments)
        if apply is byol.target_apply:
            pairs = outputs.projection.reshape(-1, 2, outputs.projection.shape[-1])
            outputs = outputs._replace(projection=pairs[:, ::-1].reshape(outputs.projection.shape))
        return outputs, stats

    return both_views


def average_first(real: Callable) -> Callable:
    """The target moves towards the online parameters as they were before the optimiser's step."""

    def step(s: Any, state: Any, images: Any) -> Any:
        new, metrics = real(s, state, images)
        online = {name: part for name, part in state.online.params.items() if name != "predictor"}
        return new.replace(target=Variables(ema_update(state.target.params, online, DECAY), new.target.stats)), metrics

    return step


def buffers_averaged(real: Callable) -> Callable:
    """The target's batch-norm statistics are averages of the online network's, as its parameters are."""

    def step(s: Any, state: Any, images: Any) -> Any:
        new, metrics = real(s, state, images)
        online = {name: part for name, part in new.online.stats.items() if name != "predictor"}
        averaged = ema_update(state.target.stats, online, DECAY)
        stats = jax.tree.map(lambda own, other: other if own.ndim else own, new.target.stats, averaged)
        return new.replace(target=Variables(new.target.params, stats)), metrics

    return step


class Mutant(NamedTuple):
    """A function (module, name) and what becomes of it; at least how many of loss and leaves differ, and all which."""

    module: Any
    name: str
    change: Callable
    at_least: int
    differing: str


EVEN = Network(lambda: torch_small_cnn(16), SMALL.ours, 16)
"""Maps of even size, where TensorFlow's padding gives the same shapes and other numbers."""

MUTANTS = {
    "biased running variance": Mutant(layers, "batch_norm_train", biased_variance, 7, r"(online|target) \S+/var"),
    "decay on unused layers": Mutant(byol, "_trained", all_trained, 4, r"(online|target) encoder/7/(kernel|bias)"),
    "padding SAME": Mutant(nets.cnn, "conv2d", same_padding, 30, r"loss|\S+ \S+"),
    "targets not crossed": Mutant(byol, "_both_views", not_crossed, 20, r"loss|\S+ \S+/(kernel|bias|scale)"),
    "average before the optimiser": Mutant(byol, "step", average_first, 10, r"target \S+/(kernel|bias|scale)"),
    "target's buffers averaged": Mutant(byol, "step", buffers_averaged, 6, r"target \S+/(mean|var)"),
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
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mistake_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, calls = MUTANTS[name], []
    changed = one.change(getattr(one.module, one.name))

    def mutant(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        return changed(*arguments, **options)

    monkeypatch.setattr(one.module, one.name, mutant)
    with jax.enable_x64(True), pytest.raises(AssertionError) as caught:
        check(EVEN, CASE)
    assert calls, "the mutant was never called"
    names = differing(str(caught.value))
    assert len(names) >= one.at_least
    assert all(re.fullmatch(one.differing, name) for name in names), names
    assert ("loss" in names) == ("loss" in one.differing)


@pytest.mark.slow
def test_separate_views_are_caught() -> None:
    with jax.enable_x64(True), pytest.raises(AssertionError) as caught:
        check(EVEN, CASE, views="separate")
    names = differing(str(caught.value))
    assert {"loss", "online encoder/1/var", "target projector/1/mean", "online predictor/3/kernel"} <= set(names)
