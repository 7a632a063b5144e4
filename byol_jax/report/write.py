"""report.html: a run on one page that stands alone, without network, script or plotting library.

Reads metrics.jsonl, config.json, environment.json, evaluation.json, views.png and neighbours.png in the run's folder.
Each may be absent or damaged: what can't be read is left out, and a note names it. The page's looks are in page.py, its
charts in curves.py, matrix.py and scatter.py.
"""

import base64
import json
import math
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from byol_jax.disk import write_atomically
from byol_jax.errors import ConfigurationError
from byol_jax.evaluate.collapse import HEALTHY_FRACTION
from byol_jax.recipe import DEFAULT
from byol_jax.report.curves import Reference, line_chart
from byol_jax.report.page import document, evaluation_section, facts_section, number, scale
from byol_jax.runs.collapse_watch import CollapseWatch, likely_causes
from byol_jax.runs.folder import run_paths
from byol_jax.runs.health import EVALUATION_SPREAD, SETTLED_STEPS
from byol_jax.runs.metrics import read_metrics
from byol_jax.runs.probe import PROBE_KNN, PROBE_LINEAR
from byol_jax.tree import flatten

__all__ = ["write_report"]

PNG = b"\x89PNG\r\n\x1a\n"


class Curve(NamedTuple):
    """One chart: a key of metrics.jsonl, its title and unit, what it means, and what its values are multiplied by."""

    key: str
    title: str
    unit: str
    caption: str
    factor: float = 1.0


CURVES = (
    Curve("loss", "Loss", "", "2 − 2 cos, summed over both directions; its level says little about quality"),
    Curve(
        "feature_std", "Feature spread", "", "standard deviation of the normalised projections, mean over dimensions"
    ),
    Curve(
        EVALUATION_SPREAD,
        "Feature spread in evaluation mode",
        "",
        "the same with running statistics, as the network is used, on up to 256 training images",
    ),
    Curve(
        "effective_rank",
        "Effective rank",
        "",
        "of the same projections: how many of their dimensions are used (RankMe)",
    ),
    Curve(
        "alignment",
        "Alignment",
        "",
        "squared distance between two views of an image, as directions; in evaluation mode",
    ),
    Curve(
        "uniformity",
        "Uniformity",
        "",
        "0 where all images are alike, near −4 where their directions are spread evenly; in evaluation mode",
    ),
    Curve(PROBE_KNN, "kNN accuracy", "%", "on the labelled images of --probe; training doesn't see them", 100.0),
    Curve(PROBE_LINEAR, "Linear accuracy", "%", "of logistic regression on the features of the same images", 100.0),
    Curve("grad_norm", "Gradient norm", "", "Euclidean, over all trained parameters"),
    Curve("param_norm", "Parameter norm", "", "Euclidean, over the online network"),
    Curve("learning_rate", "Learning rate", "", "of the optimiser"),
    Curve("decay", "Target decay", "", "the part of the target network that a step keeps"),
    Curve("images_per_second", "Throughput", "images/s", "images, not views, over all devices; without compilation"),
    Curve("data_wait", "Data wait", "%", "part of the time that the loop waited for images", 100.0),
)


def write_report(run_folder: str | os.PathLike[str], *, title: str | None = None) -> Path:
    """Writes RUN/report.html and returns its path.

    Args:
        run_folder: a run's folder. A row of its metrics.jsonl has "step" and any of loss, feature_std, grad_norm,
            evaluation_feature_std, param_norm, learning_rate, decay, images_per_second, data_wait (part of the time, in
            [0, 1]), seconds, compile_seconds, epoch, nonfinite.
        title: the page's heading; the folder's name by default.

    Raises:
        ConfigurationError: no such folder.

    Example:
        >>> import tempfile
        >>> write_report(tempfile.mkdtemp(), title="mine").name
        'report.html'
    """
    folder = Path(run_folder)
    if not folder.is_dir():
        raise ConfigurationError(
            f"{folder} isn't a folder: expected a run's folder, as `byol-jax train --out` makes it"
        )
    notes: list[str] = []
    paths = run_paths(folder)
    rows = _metrics(paths.metrics, notes)
    config, environment, evaluation = (
        _json(path, notes) for path in (paths.config, paths.environment, paths.evaluation)
    )
    views = _picture(paths.views, "Views", "images and their two views", notes)
    nearest = _picture(paths.neighbours, "Nearest neighbours", "test images and their nearest neighbours", notes)
    sections = [
        _summary(rows),
        _collapse(rows, config),
        "".join(f"<p>Note: {escape(note)}.</p>" for note in notes),
        evaluation_section(evaluation),
        nearest if evaluation else "",
        _charts(rows, flatten(config)),
        views,
        facts_section("Configuration", config),
        facts_section("Environment", environment),
    ]
    page = document(title or folder.resolve().name, sections)
    write_atomically(paths.report, page.encode("utf-8", errors="replace"))
    return paths.report


def _metrics(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The rows that have a step, in the order of steps; a note counts the lines that can't be used."""
    try:
        rows, damaged = read_metrics(path)
    except OSError as error:
        notes.append(f"{path.name} can't be read ({error.strerror})")
        return []
    usable = [row for row in rows if number(row.get("step")) is not None]
    damaged += len(rows) - len(usable)
    if damaged:
        notes.append(f"lines of {path.name} that can't be read and are left out: {damaged}")
    if not usable:
        notes.append(f"{path.name} has no rows, so there are no curves")
    return sorted(usable, key=lambda row: row["step"])


def _json(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        content = None
    if isinstance(content, dict):
        return content
    notes.append(f"{path.name} can't be read and is left out")
    return {}


def _summary(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    facts = [f"{rows[-1]['step']:,.0f} steps"]
    if (epoch := number(rows[-1].get("epoch"))) is not None and epoch > 0:
        facts.append(f"{epoch:,.1f} epochs")
    seconds = sum(number(row.get("seconds")) or 0.0 for row in rows)
    if seconds > 0:
        facts.append(f"{seconds / 60:,.1f} minutes of training")
    compiling = sum(number(row.get("compile_seconds")) or 0.0 for row in rows)
    if compiling > 0:
        facts.append(f"{compiling:,.1f} seconds of them spent compiling")
    skipped = sum(number(row.get("nonfinite")) or 0.0 for row in rows)
    plural = "step" if skipped == 1 else "steps"
    facts.append(f"{skipped:,.0f} {plural} not finite" if skipped else "every step finite")
    return f"<p>{' · '.join(facts)}</p>"


def _collapse(rows: list[dict[str, Any]], config: dict[str, Any]) -> str:
    """In red, what has collapsed: for good, once, or in the last measure of evaluation mode."""
    size = _projection_size(flatten(config))
    if size is None:
        return ""
    watch = CollapseWatch(round(size))
    for row in rows:
        watch.add(row)
    lines = [f"It was {collapse}; it has recovered." for collapse in watch.ended]
    if watch.verdict is not None:
        return "".join(_red(line) for line in [*lines, f"It has {watch.verdict}; {likely_causes(config)}."])
    measured = [row for row in rows if EVALUATION_SPREAD in row]
    if measured and measured[-1]["step"] >= SETTLED_STEPS:
        spread = number(measured[-1][EVALUATION_SPREAD])
        if spread is None or _is_low(spread, _spread_levels(flatten(config))):
            how = "aren't finite" if spread is None else f"are all alike (spread {spread:.4g})"
            lines.append(
                f"Collapsed: in evaluation mode, as the network is used, projections of different images {how}."
                " Lower the learning rate or the weight decay."
            )
    return "".join(map(_red, lines))


def _red(line: str) -> str:
    return f'<p class="bad">{escape(line)}</p>'


def _charts(rows: list[dict[str, Any]], config: dict[str, Any]) -> str:
    figures = []
    for curve in CURVES:
        points = [(row["step"], scale(row.get(curve.key), curve.factor)) for row in rows]
        step, last = next(((step, value) for step, value in reversed(points) if value is not None), (0, None))
        references = _levels(curve, rows, config)
        chart = line_chart(points, name=f"{curve.title} by step", references=references)
        if last is None or not chart:
            continue
        judged = curve.key != EVALUATION_SPREAD or step >= SETTLED_STEPS
        value = f"<span>last: {last:,.4g} {curve.unit}</span>"
        if judged and _is_low(last, references):
            value = f'<span class="bad">collapsed: {last:.4g}</span>'
        heading = f"<h3>{curve.title} {value}</h3>"
        figures.append(f"<figure>{heading}{chart}<figcaption>{curve.caption}</figcaption></figure>")
    return f'<h2>Training</h2>\n<div class="charts">{"".join(figures)}</div>' if figures else ""


def _is_low(spread: float, levels: Sequence[Reference]) -> bool:
    return any(level.kind == "bad" and spread < level.value for level in levels)


def _levels(curve: Curve, rows: list[dict[str, Any]], config: dict[str, Any]) -> Sequence[Reference]:
    """What a curve is compared with: of a spread the even one, of a probe the starting weights'."""
    if curve.key in ("feature_std", EVALUATION_SPREAD):
        return _spread_levels(config)
    if curve.key not in (PROBE_KNN, PROBE_LINEAR):
        return ()
    start = next((row[curve.key] for row in rows if row["step"] == 0 and curve.key in row), None)
    value = scale(start, curve.factor)
    return () if value is None else (Reference(value, f"starting weights: {value:.1f}", "plain"),)


def _projection_size(config: dict[str, Any]) -> float | None:
    """`pretrain` keeps the options that it was given; the others have `make_learner`'s defaults."""
    sizes = (value for name, value in config.items() if name.rpartition("/")[2] == "projection_size")
    size = number(next(sizes, DEFAULT.projection_size if config else None))
    return None if size is None or size < 1 else size


def _spread_levels(config: dict[str, Any]) -> Sequence[Reference]:
    """The healthy level 1/sqrt(P) and the collapse line, if the configuration has the projections' size P."""
    size = _projection_size(config)
    if size is None:
        return ()
    healthy = 1 / math.sqrt(size)
    return (
        Reference(healthy, f"evenly spread: 1/√{size:.0f} = {healthy:.3g}", "good"),
        Reference(HEALTHY_FRACTION * healthy, f"collapsed below {HEALTHY_FRACTION * healthy:.3g}", "bad"),
    )


def _picture(path: Path, heading: str, text: str, notes: list[str]) -> str:
    try:
        picture = path.read_bytes()
    except FileNotFoundError:
        return ""
    except OSError as error:
        notes.append(f"{path.name} can't be read ({error.strerror})")
        return ""
    if not picture.startswith(PNG):
        notes.append(f"{path.name} is no PNG and is left out")
        return ""
    data = base64.b64encode(picture).decode()
    return f'<h2>{heading}</h2>\n<img alt="{text}" src="data:image/png;base64,{data}">'
