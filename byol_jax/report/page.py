"""The words and tables of a report's page: HTML from plain values, every text escaped. Pure functions.

Charts are in curves.py; files are read in write.py.
"""

import json
from collections.abc import Iterable
from html import escape
from typing import Any

from byol_jax.report.curves import STYLE
from byol_jax.tree import flatten

__all__ = ["document", "evaluation_section", "facts_section", "number", "scale"]

NAMES = {
    "knn": "kNN",
    "linear": "linear",
    "raw_pixels": "raw pixels",
    "random_init": "random initialisation",
    "starting_weights": "the weights it started from",
    "byol": "BYOL",
}
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
table.scores .number { text-align: right; font-variant-numeric: tabular-nums; }
"""


def document(title: str, sections: Iterable[str]) -> str:
    """A whole page: the title, which is escaped, and the sections, which are HTML; empty ones are left out."""
    heading = escape(title)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{heading}</title>\n<style>{STYLE}{PAGE_STYLE}</style>\n</head>\n<body>\n<h1>{heading}</h1>\n"
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
    """The table of accuracies: `content` itself, or what it has under "scores", with its other facts below."""
    table = content["scores"] if isinstance(content.get("scores"), dict) else content
    scores = {name: score for name, score in table.items() if isinstance(score, dict)}
    columns = list(dict.fromkeys(key for score in scores.values() for key in score if number(score[key]) is not None))
    if not columns:
        return ""
    head = "".join(f'<th class="number">{_name(column)}</th>' for column in columns)
    lines = []
    for name, score in scores.items():
        numbers = [scale(score.get(column), 100) for column in columns]
        cells = (f'<td class="number">{"–" if one is None else f"{one:.1f}"}</td>' for one in numbers)
        lines.append(f"<tr><td>{_name(name)}</td>{''.join(cells)}</tr>")
    accuracies = f'<table class="scores"><tr><th>features</th>{head}</tr>{"".join(lines)}</table>'
    facts = {} if table is content else {name: value for name, value in content.items() if name != "scores"}
    return f"<h2>Evaluation</h2>\n<p>Accuracy on test images, per cent.</p>\n{accuracies}{_table(facts)}"


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
