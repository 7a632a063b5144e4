"""Has a run collapsed? A verdict from the rows of metrics.jsonl, while it trains and in its report.

One low row is no verdict: the spread must stay low. What else may be low for a moment is said in health.py. Nothing is
stopped here; that is the loop's, in train/loop.py.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from byol_jax.evaluate.collapse import HEALTHY_FRACTION
from byol_jax.presets import known
from byol_jax.recipe import LEARNING_RATES
from byol_jax.runs.health import EVALUATION_SPREAD, SETTLED_STEPS

__all__ = ["PERSISTENT_STEPS", "Collapse", "CollapseWatch", "likely_causes"]

PERSISTENT_STEPS = 200
"""A spread that is low in every row for so many steps, two rows at least, is a collapse."""

MODES = {"feature_std": ("training", 200), EVALUATION_SPREAD: ("evaluation", SETTLED_STEPS)}
"""Measures of spread: the mode of batch norm that each is of, and the step from which on it counts."""

HIGH_RATE = 3
"""Times an optimiser's usual rate: above, the rate is named as a likely cause, if no preset has it. Adam's is 3e-4."""
SMALL_BATCH = 64
"""Images a step, in a part where it has parts. The paper's accuracy falls by 2 points from 256 to 128 images, by 12 to
64 (arXiv:2006.07733, section 5, figure 3a)."""
LOW_DECAY = 0.9
"""Of the target, where it is constant: 68.4 % for 72.5 % at 0.9, 0.3 % at 0, which has collapsed (table 5a)."""
HIGH_WEIGHT_DECAY = 0.01
"""Above any recipe here; the paper's is 1.5e-6, AdamW's own 1e-4."""


class Collapse(NamedTuple):
    """What a verdict says.

    Attributes:
        since: the step of the first row in which the spread was low.
        step: the row that it was said of, the last one so far.
        mode: "training" or "evaluation", the mode of batch norm in which projections are all alike.
        spread: at `step`.
        even: what projections that are evenly spread have, 1/sqrt(P).
    """

    since: int
    step: int
    mode: str
    spread: float
    even: float

    def __str__(self) -> str:
        """In one clause, without causes."""
        return (
            f"collapsed since step {self.since:,}: projections of different images are all alike in {self.mode} mode"
            f" (spread {self.spread:.2g} after step {self.step:,}, where evenly spread ones have {self.even:.2g})"
        )


class CollapseWatch:
    """Takes the rows of a run in their order and says when it counts as collapsed.

    That is when `feature_std`, or `evaluation_feature_std`, is below a tenth of 1/sqrt(P) in every row that has it,
    for 200 steps; rows before step 200 don't count, nor those before step 1,000 in evaluation mode. A row that isn't
    low ends it. Rows whose spread isn't finite decide nothing.

    Args:
        projection_size: P.

    Attributes:
        verdict: the collapse that lasts after the row added last; None where there is none.
        ended: collapses that lasted once and don't any more, as the last row of each says.

    Example:
        >>> watch = CollapseWatch(256)
        >>> for step in range(200, 500, 100):
        ...     watch.add({"step": step, "feature_std": 0.001})
        >>> watch.verdict.since, watch.verdict.step
        (200, 400)
        >>> watch.add({"step": 500, "feature_std": 0.05})
        >>> watch.verdict is None, len(watch.ended)
        (True, 1)
    """

    def __init__(self, projection_size: int) -> None:
        self.verdict: Collapse | None = None
        self.ended: list[Collapse] = []
        self._even = 1 / math.sqrt(projection_size)
        self._low: dict[str, Collapse] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Enters a row: "step", and any of the spreads."""
        for key, (mode, settled) in MODES.items():
            spread = _number(row.get(key))
            if spread is None or row["step"] < settled:
                continue
            if spread >= HEALTHY_FRACTION * self._even:
                self._low.pop(key, None)
            else:
                since = self._low[key].since if key in self._low else row["step"]
                self._low[key] = Collapse(since, row["step"], mode, spread, self._even)
        lasting = [low for low in self._low.values() if low.step - low.since >= PERSISTENT_STEPS]
        before, self.verdict = self.verdict, min(lasting, default=None)
        if before is not None and self.verdict is None:
            self.ended.append(before)


def likely_causes(config: Mapping[str, Any], *, has_batch_norm: bool | None = None) -> str:
    """What in a run's configuration most likely made it collapse, and what to do about it, as one line.

    Args:
        config: as config.json has it; what isn't there isn't judged.
        has_batch_norm: whether the encoder has batch norm; None where nobody knows.

    Example:
        >>> likely_causes({"batch_size": 8, "learner": {"optimizer": "adam", "learning_rate": 3e-4}})
        'likely causes: a batch of 8, take 64 images or more; then try a tenth of the learning rate'
    """
    learner, causes = config.get("learner"), []
    learner = learner if isinstance(learner, Mapping) else {}
    optimizer, rate = learner.get("optimizer"), _number(learner.get("learning_rate"))
    usual = LEARNING_RATES.get(optimizer) if isinstance(optimizer, str) else None
    published = {
        preset.base_learning_rate for preset in (one.preset for one in known()) if preset.optimizer == optimizer
    }
    is_high = rate is not None and usual is not None and rate > HIGH_RATE * usual and rate not in published
    if is_high:
        causes.append(f"a learning rate of {rate:g}, {optimizer}'s usual one is {usual:g}: try a tenth")
    batch, parts = _number(config.get("batch_size")), _number(config.get("accumulate")) or 1
    if batch is not None and batch / parts < SMALL_BATCH:
        part = f" in {parts:g} parts" if parts > 1 else ""
        causes.append(f"a batch of {batch:g}{part}, take {SMALL_BATCH} images or more" + (" a part" if part else ""))
    if learner.get("augment") == "none":
        causes.append("views without augmentation, take simclr or byol")
    decay = _number(learner.get("moving_average_decay"))
    if learner.get("use_momentum") is False:
        causes.append("no target network, leave out --no-momentum (use_momentum=False)")
    elif decay is not None and decay < LOW_DECAY:
        causes.append(f"a target decay of {decay:g}, take 0.99")
    if (weight_decay := _number(learner.get("weight_decay"))) is not None and weight_decay > HIGH_WEIGHT_DECAY:
        causes.append(f"a weight decay of {weight_decay:g}, take 1e-4 or less")
    if has_batch_norm is False:
        causes.append("an encoder without batch norm, which takes a lower rate and a warm-up")
    if not causes:
        return (
            "no option stands out; try a tenth of the learning rate, then a larger batch, stronger augmentation, a"
            " target decay nearer 1"
        )
    return f"likely causes: {'; '.join(causes)}" + ("" if is_high else "; then try a tenth of the learning rate")


def _number(value: Any) -> float | None:
    """`value` as a float if it is a finite number, else None."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e100:
        return float(value)
    return None
