"""What the representation knows about labels while it is trained: kNN and logistic regression of a labelled set.

`byol-jax train --probe DIR --probe-every N`: at step 0, with the weights that the run starts from, then every N steps
and at the end. The numbers are those of `byol-jax evaluate` at that step. Labels reach nothing that is trained:
features are taken in evaluation mode, on one device of process 0, and no random number of the run is drawn.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from byol_jax.byol import Learner
from byol_jax.data import EvaluationImages
from byol_jax.errors import DataError
from byol_jax.evaluate import extract
from byol_jax.evaluate.scores import Labelled, knn_scores, logistic_scores
from byol_jax.runs.health import local_state
from byol_jax.types import TrainState

__all__ = ["PROBE_EVERY", "PROBE_KNN", "PROBE_LINEAR", "Probe", "Prober", "check_probe", "make_probe"]

PROBE_KNN, PROBE_LINEAR = "probe_knn", "probe_linear"
"""Their names in metrics.jsonl."""

PROBE_EVERY = 1000
"""Steps between probes unless a run says otherwise."""

NEIGHBOURS = 20
"""Of the kNN, or as many images as there are; DINO's, as in `evaluate.knn`."""

FEWEST_TO_FIT, FEWEST_TO_MEASURE = 3, 1
"""Images of a class. Of three, one is held out to choose the regression's L2 on."""

BATCH = 256
"""Images at a time, at most; no more than in a step."""


class Probe(NamedTuple):
    """A labelled set in two parts, and how often it is looked at.

    Attributes:
        train, test: images to fit the classifiers on, and to measure them on.
        train_labels, test_labels: [N] and [M] int32.
        identity: for config.json: what the data is, how it was split, and `every`.
        every: steps between probes.
        seed: of what the logistic regression draws.
    """

    train: EvaluationImages
    train_labels: np.ndarray
    test: EvaluationImages
    test_labels: np.ndarray
    identity: dict[str, Any]
    every: int
    seed: int


def check_probe(train_labels: np.ndarray, test_labels: np.ndarray, class_names: Any = None) -> None:
    """Returns where every class has images to fit on and to measure on.

    Raises:
        DataError: some class has fewer than 3 to fit on, or none to measure on; names it.

    Example:
        >>> check_probe(np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1]))
    """
    for label in np.unique(np.concatenate([train_labels, test_labels])):
        fit, measure = (int(np.sum(labels == label)) for labels in (train_labels, test_labels))
        if fit < FEWEST_TO_FIT or measure < FEWEST_TO_MEASURE:
            name = class_names[label] if class_names else int(label)
            raise DataError(
                f"class {name!r} has {fit} images to fit on and {measure} to measure on: expected at least"
                f" {FEWEST_TO_FIT} and {FEWEST_TO_MEASURE}; a probe needs about 10 images of each class or more"
            )


def make_probe(learner: Learner, probe: Probe, *, batch_size: int) -> Callable[[TrainState], dict[str, float]]:
    """`measure(state)`: accuracies in [0, 1] of kNN and of logistic regression, and the seconds that it took.

    Args:
        batch_size: images at a time; the last ones may be fewer.

    Raises (when it measures):
        DataError: features aren't finite.
    """
    embed = jax.jit(learner.embed)

    def measure(state: TrainState) -> dict[str, float]:
        began = time.perf_counter()
        function = partial(embed, local_state(learner, state))
        of, on = (extract(function, images, batch_size=batch_size) for images in (probe.train, probe.test))
        data = Labelled(of, probe.train_labels, on, probe.test_labels)
        neighbours = knn_scores(data, [min(NEIGHBOURS, len(probe.train_labels))])["knn"]
        regression = logistic_scores(data, seed=probe.seed)["linear"]
        return {
            PROBE_KNN: float(np.mean(neighbours.right)),
            PROBE_LINEAR: float(np.mean(regression.right)),
            "probe_seconds": time.perf_counter() - began,
        }

    return measure


class Prober:
    """Rows of a run's probes, and what a person is told of them.

    Args:
        measure: as `make_probe` gives it.
        rows: those of the run so far, which may have probes among them.
        every: steps between probes.

    Example:
        >>> prober = Prober(lambda state: state, [{"step": 0, "probe_knn": 0.4, "probe_linear": 0.5}])
        >>> prober.row({"probe_knn": 0.61, "probe_linear": 0.664}, step=500, epoch=1.0)["probe_knn"]
        0.61
        >>> prober.sentence
        'probe after step 500: kNN 61.0 %, linear 66.4 % (starting weights 40.0 and 50.0)'
        >>> prober.remark
        'kNN 61.0%'
    """

    def __init__(
        self,
        measure: Callable[[TrainState], dict[str, float]],
        rows: Sequence[dict[str, Any]] = (),
        *,
        every: int = PROBE_EVERY,
    ) -> None:
        self.every = every
        found = [row for row in rows if PROBE_KNN in row]
        self._measure = measure
        self._last = found[-1] if found else None
        self._start = next((row for row in found if row["step"] == 0), None)

    def row(self, state: TrainState, *, step: int, epoch: float) -> dict[str, Any]:
        """A row for metrics.jsonl: step and epoch as given, accuracies in [0, 1], `probe_seconds`."""
        self._last = {"step": step, "epoch": epoch} | self._measure(state)
        self._start = self._last if step == 0 else self._start
        return self._last

    @property
    def sentence(self) -> str:
        """The last row as one line, beside that of step 0."""
        last, start = self._last or {}, self._start
        knn, linear = (100 * last[name] for name in (PROBE_KNN, PROBE_LINEAR))
        beside = ""
        if start is not None and start is not last:
            beside = f" (starting weights {100 * start[PROBE_KNN]:.1f} and {100 * start[PROBE_LINEAR]:.1f})"
        return f"probe after step {last['step']:,}: kNN {knn:.1f} %, linear {linear:.1f} %{beside}"

    @property
    def remark(self) -> str:
        """The last row in two words, for a line that moves; empty before the first."""
        return "" if self._last is None else f"kNN {self._last[PROBE_KNN]:.1%}"
