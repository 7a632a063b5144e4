"""Confusion matrices as SVG text, one a picture: which class was taken for which. Pure functions; see curves.py.

A cell's strength is the part of its row, so that rare classes show as well as frequent ones; its number is the count.
"""

from collections.abc import Sequence
from html import escape

__all__ = ["MATRIX_STYLE", "confusion_chart"]

SIDE = 300
"""Of the square that the cells fill, in SVG units."""
GAP, LABEL, LETTER = 10, 16, 6.2
"""Between cells and text; height of the axes' names; width of a letter at the size of the class names."""
NAMED, NUMBERED = 25, 12
"""With more classes than these the cells are too small for the classes' names, and for counts."""
LONGEST = 14
"""Letters of a class's name that are shown."""

MATRIX_STYLE = """
svg.matrix { display: block; width: 100%; height: auto; max-height: 420px; }
svg.matrix text { font: 11px system-ui, sans-serif; fill: var(--muted); }
svg.matrix .field { fill: none; stroke: var(--grid); }
svg.matrix .cell { fill: var(--line); } svg.matrix .wrong { fill: var(--bad); }
svg.matrix text.count { fill: var(--ink); text-anchor: middle; } svg.matrix text.strong { fill: var(--paper); }
"""


def confusion_chart(counts: Sequence[Sequence[int]], classes: Sequence[object], *, name: str) -> str:
    """One matrix as an SVG element: rows are labels, columns what they were taken for.

    Args:
        counts: [K, K], each 0 or more.
        classes: K names; shown up to 25 of them, the counts up to 12 classes.
        name: what screen readers say.

    Returns:
        `<svg …>…</svg>`, or "" where there are no classes.

    Example:
        >>> confusion_chart([[3, 1], [0, 4]], ["cat", "dog"], name="kNN").count("<rect")
        4
    """
    if not counts:
        return ""
    names = [_short(one) for one in classes] if len(counts) <= NAMED else []
    margin = LABEL + GAP + LETTER * max(map(len, names), default=0)
    cell, size = SIDE / len(counts), margin + SIDE + GAP
    parts = [f'<rect class="field" x="{margin:.1f}" y="{GAP}" width="{SIDE}" height="{SIDE}"/>']
    for row, line in enumerate(counts):
        total = sum(line)
        for column, count in enumerate(line):
            if count:
                corner = (margin + column * cell, GAP + row * cell)
                parts += _cell(corner, cell, count, count / total, right=row == column, counted=len(counts) <= NUMBERED)
    for position, text in enumerate(names):
        middle = (position + 0.5) * cell
        x, y = margin + middle, GAP + SIDE + 6
        parts.append(f'<text x="{margin - 5:.1f}" y="{GAP + middle + 4:.1f}" text-anchor="end">{escape(text)}</text>')
        turned = f'text-anchor="end" transform="rotate(-90 {x + 4:.1f} {y})"'
        parts.append(f'<text x="{x + 4:.1f}" y="{y}" {turned}>{escape(text)}</text>')
    centre = GAP + SIDE / 2
    turned = f'text-anchor="middle" transform="rotate(-90 11 {centre})"'
    parts.append(f'<text x="11" y="{centre}" {turned}>label</text>')
    parts.append(f'<text x="{margin + SIDE / 2:.1f}" y="{size - 4:.1f}" text-anchor="middle">taken for</text>')
    head = f'<svg class="matrix" viewBox="0 0 {size:.1f} {size:.1f}" role="img" aria-label="{escape(name)}">'
    return "\n".join([head, *parts, "</svg>"])


def _cell(
    corner: tuple[float, float], side: float, count: int, share: float, *, right: bool, counted: bool
) -> list[str]:
    """A square as strong as the share of its row, blue where it is right and red elsewhere; with its count."""
    x, y = corner
    kind = "cell" if right else "cell wrong"
    square = f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{side:.1f}" height="{side:.1f}"'
    parts = [f'{square} fill-opacity="{share:.3f}"/>']
    if counted:
        strong = " strong" if share > 0.5 else ""
        middle = f'x="{x + side / 2:.1f}" y="{y + side / 2 + 4:.1f}"'
        parts.append(f'<text class="count{strong}" {middle}>{count:,}</text>')
    return parts


def _short(name: object) -> str:
    text = " ".join(str(name).split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
