"""The words and tables of a report's page: HTML from plain values, every text escaped. Pure functions.

Charts are in curves.py; files are read in write.py.
"""

import json
from collections.abc import Iterable
from html import escape
from typing import Any

from byol_jax.report.curves import STYLE
from byol_jax.report.matrix import MATRIX_STYLE, confusion_chart
from byol_jax.report.scatter import SCATTER_STYLE, scatter_chart
from byol_jax.tree import flatten

__all__ = ["document", "evaluation_section", "facts_section", "number", "scale"]

NAMES = {
    "knn": "kNN",
    "linear": "logistic regression",
    "raw_pixels": "raw pixels",
    "random_init": "random initialisation",
    "starting_weights": "the weights it started from",
    "byol": "BYOL",
}
"""Of features, and of protocols where evaluation.json has no titles: until 0.1.0 it had kNN and logistic regression."""
SHOWN = ("scores", "intervals", "protocols", "confusion", "map")
"""What of evaluation.json is not in the list of facts below the table."""
MOST_CLASSES = 200
"""A larger matrix would be a page of megabytes that nobody can read; evaluate keeps those of 50 classes at most."""
PAGE_STYLE = """
body { margin: 0 auto; max-width: 1000px; padding: 24px 20px 60px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 32px 0 8px; }
h3 { font-size: 14px; margin: 0 0 2px; display: flex; justify-content: space-between; gap: 8px; }
h3 span, p, figcaption { color: var(--muted); font-weight: 400; } h3 .bad, p.bad { color: var(--bad); }
p { margin: 4px 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 14px; }
figure { margin: 0; padding: 12px 12px 6px; background: var(--panel); border-radius: 8px; }
figcaption { font-size: 12px; } img { max-width: 100%; border-radius: 4px; }
table { border-collapse: collapse; } table.scores + table { margin-top: 14px; }
td, th { text-align: left; vertical-align: top; padding: 3px 24px 3px 0; border-bottom: 1px solid var(--grid);
  overflow-wrap: anywhere; font-weight: 400; } th { font-weight: 600; }
table.facts { width: 100%; font-size: 13px; } table.facts td:first-child { width: 34%; color: var(--muted); }
table.scores th, table.scores td { padding: 5px 28px 5px 0; }
table.scores .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
table.scores small { display: block; color: var(--muted); max-width: 46em; }
"""


def document(title: str, sections: Iterable[str]) -> str:
    """A whole page: the title, which is escaped, and the sections, which are HTML; empty ones are left out."""
    heading = escape(title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{heading}</title>\n<style>{STYLE}{MATRIX_STYLE}{SCATTER_STYLE}{PAGE_STYLE}</style>\n</head>\n<body>\n<h1>{heading}</h1>\n"
        + "\n".join(section for section in sections if section)
        + "\n</body>\n</html>\n"
    )


def number(value: object) -> float | None:
    """`value` as a float if it is a finite number, else None."""
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e100:
        return float(value)
    return None


def scale(value: object, factor: float) -> float | None:
    """`value` times `factor` if it is a finite number, else None."""
    finite = number(value)
    return None if finite is None else finite * factor


def evaluation_section(content: dict[str, Any]) -> str:
    """The table of accuracies, a row for each protocol, and pictures of the confusion matrices.

    The accuracies are `content` itself, or what it has under "scores"; other facts stand below.
    """
    table = content["scores"] if isinstance(content.get("scores"), dict) else content
    scores = {name: score for name, score in table.items() if isinstance(score, dict)}
    keys = list(dict.fromkeys(key for score in scores.values() for key in score if number(score[key]) is not None))
    if not keys:
        return ""
    head = "".join(f'<th class="number">{_name(name)}</th>' for name in scores)
    lines = []
    for key in keys:
        cells = (f'<td class="number">{_accuracy(content, scores, name, key)}</td>' for name in scores)
        how = _dict(content, "protocols", key).get("how")
        text = f"<small>{escape(how)}</small>" if isinstance(how, str) else ""
        lines.append(f"<tr><td>{_title(content, key)}{text}</td>{''.join(cells)}</tr>")
    accuracies = f'<table class="scores"><tr><th>protocol</th>{head}</tr>{"".join(lines)}</table>'
    unsure = "; below, where 95 % of resamples of the test images lie" if _dict(content, "intervals") else ""
    facts = {} if table is content else {name: value for name, value in content.items() if name not in SHOWN}
    return (
        f"<h2>Evaluation</h2>\n<p>Accuracy on test images, per cent{unsure}.</p>\n{accuracies}{_table(facts)}"
        + _confusion(content, keys)
        + _maps(content)
    )


def _accuracy(content: dict[str, Any], scores: dict[str, dict[str, Any]], name: str, key: str) -> str:
    """A cell: the accuracy, and below it its interval, where there is one."""
    value = scale(scores[name].get(key), 100)
    if value is None:
        return "–"
    interval = _dict(content, "intervals", name).get(key)
    ends = [scale(end, 100) for end in interval] if isinstance(interval, list) and len(interval) == 2 else []
    low, high = ends if len(ends) == 2 else (None, None)
    if low is None or high is None:
        return f"{value:.1f}"
    return f"{value:.1f}<small>{low:.1f} to {high:.1f}</small>"


def _confusion(content: dict[str, Any], keys: list[str]) -> str:
    """Pictures of the matrices, protocol by protocol; what isn't a matrix of counts is left out."""
    counts, classes = _dict(content, "confusion", "counts"), _dict(content, "confusion").get("classes")
    figures = []
    for key in keys:
        for name, of_features in counts.items():
            matrix = _matrix(of_features.get(key) if isinstance(of_features, dict) else None)
            if matrix and isinstance(classes, list) and len(classes) == len(matrix):
                title = f"{_name(name)}<span>{_title(content, key)}</span>"
                chart = confusion_chart(matrix, classes, name=f"confusion of {name}, {key}")
                figures.append(f"<figure><h3>{title}</h3>{chart}</figure>")
    if not figures:
        return ""
    text = "<p>Which class was taken for which: counts, each row as strong as its parts.</p>"
    return f'<h2>Confusion</h2>\n{text}\n<div class="charts">{"".join(figures)}</div>'


def _maps(content: dict[str, Any]) -> str:
    """The features in two dimensions; a map whose numbers aren't numbers is left out."""
    whole = _dict(content, "map")
    groups, classes = whole.get("groups"), whole.get("classes")
    if not isinstance(groups, list) or not isinstance(classes, list):
        return ""
    if not all(type(group) is int and 0 <= group < len(classes) for group in groups):
        return ""
    figures = []
    for name in _dict(whole, "coordinates"):
        axes = _dict(whole, "coordinates", name)
        sides = [axes.get(side) for side in ("x", "y")]
        numbers = [[number(value) for value in side] for side in sides if isinstance(side, list)]
        if len(numbers) < 2 or any(len(side) != len(groups) or None in side for side in numbers):
            continue
        part = scale(axes.get("explained"), 100)
        shown = "" if part is None else f"<span>{part:.0f} % of the variance</span>"
        chart = scatter_chart(list(zip(*numbers, strict=True)), groups, classes, name=f"map of {name}")
        figures.append(f"<figure><h3>{_name(name)}{shown}</h3>{chart}</figure>")
    if not figures:
        return ""
    text = "<p>The first two principal components (PCA) of the test images' features, without their labels.</p>"
    return f'<h2>Map</h2>\n{text}\n<div class="charts">{"".join(figures)}</div>'


def _matrix(value: object) -> list[list[int]]:
    """`value` where it is a square of counts, not too large to draw; else nothing."""
    lines = [line for line in value if isinstance(line, list)] if isinstance(value, list) else []
    counts = [count for line in lines for count in line]
    whole = all(type(count) is int and 0 <= count < 1e15 for count in counts)
    square = isinstance(value, list) and all(len(line) == len(value) for line in lines) and len(lines) == len(value)
    return lines if square and whole and len(lines) <= MOST_CLASSES else []


def _dict(content: dict[str, Any], *names: str) -> dict[str, Any]:
    """What lies under these names, one within another; empty where that is no dict."""
    for name in names:
        found = content.get(name)
        content = found if isinstance(found, dict) else {}
    return content


def _title(content: dict[str, Any], key: str) -> str:
    title = _dict(content, "protocols", key).get("title")
    return escape(title) if isinstance(title, str) else _name(key)


def _name(name: str) -> str:
    return escape(NAMES.get(name) or name)


def facts_section(heading: str, content: dict[str, Any]) -> str:
    """A heading and a table of names and values, or "" if there are none."""
    return f"<h2>{heading}</h2>\n{_table(content)}" if content else ""


def _table(content: dict[str, Any]) -> str:
    """Names and values, nested names joined by "/"."""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(_text(value))}</td></tr>" for name, value in flatten(content).items()
    )
    return f'<table class="facts">{rows}</table>' if rows else ""


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
        return " ".join(value)  # a command line
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
