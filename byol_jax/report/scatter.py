"""Points in a plane as SVG text, coloured by class. Pure functions; see curves.py for the page's other charts."""

from collections.abc import Sequence
from html import escape

__all__ = ["SCATTER_STYLE", "scatter_chart"]

WIDTH, HEIGHT, MARGIN = 340, 300, 12
LINE, LETTER = 16, 6.2
"""Of the legend: height of a line, width of a letter."""
NAMED = 20
"""With more classes the legend is left out."""
LONGEST = 16

SCATTER_STYLE = """
svg.scatter { display: block; width: 100%; height: auto; }
svg.scatter text { font: 11px system-ui, sans-serif; fill: var(--muted); }
svg.scatter .field { fill: none; stroke: var(--grid); } svg.scatter circle { fill-opacity: 0.7; }
"""


def scatter_chart(
    points: Sequence[tuple[float, float]], groups: Sequence[int], names: Sequence[object], *, name: str
) -> str:
    """One map as an SVG element; both axes have the same scale, so that distances are true.

    Args:
        points: (x, y), finite.
        groups: for each point the position of its class in `names`.
        names: of the classes; shown up to 20 of them.
        name: what screen readers say.

    Returns:
        `<svg …>…</svg>`, or "" where there are no points.

    Example:
        >>> scatter_chart([(0.0, 0.0), (1.0, 1.0)], [0, 1], ["cat", "dog"], name="map").count("<circle")
        4
    """
    if not points:
        return ""
    low = [min(point[axis] for point in points) for axis in (0, 1)]
    high = [max(point[axis] for point in points) for axis in (0, 1)]
    width, height = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
    spans = [high[axis] - low[axis] for axis in (0, 1)]
    wide = [(room, span) for room, span in zip((width, height), spans, strict=True) if span > 1e-9 * max(spans)]
    scale = min((room / span for room, span in wide if span > 1e-100), default=0.0)  # 0: all in one place
    middle = [(high[axis] + low[axis]) / 2 for axis in (0, 1)]
    colors = [f"hsl({360 * group / max(len(names), 1):.0f} 65% 50%)" for group in range(len(names))]
    legend = _legend(names, colors) if len(names) <= NAMED else []
    total = HEIGHT + LINE * max((line for line, _ in legend), default=-1) + (LINE + 4 if legend else 0)
    head = f'<svg class="scatter" viewBox="0 0 {WIDTH} {total}" role="img" aria-label="{escape(name)}">'
    parts = [head, f'<rect class="field" x="1" y="1" width="{WIDTH - 2}" height="{HEIGHT - 2}"/>']
    for (x, y), group in zip(points, groups, strict=True):
        across, down = WIDTH / 2 + scale * (x - middle[0]), HEIGHT / 2 - scale * (y - middle[1])
        parts.append(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="2.5" fill="{colors[group]}"/>')
    return "\n".join([*parts, *(text for _, text in legend), "</svg>"])


def _legend(names: Sequence[object], colors: Sequence[str]) -> list[tuple[int, str]]:
    """(line, a dot and a name) below the map, as many to a line as there is room for."""
    parts, line, left = [], 0, 4.0
    for name, color in zip(names, colors, strict=True):
        text = " ".join(str(name).split())
        text = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
        width = 22 + LETTER * len(text)
        if left + width > WIDTH and left > 4:
            line, left = line + 1, 4.0
        y = HEIGHT + LINE * (line + 1) - 4
        dot = f'<circle cx="{left + 4:.1f}" cy="{y - 4}" r="4" fill="{color}"/>'
        parts.append((line, f'{dot}<text x="{left + 11:.1f}" y="{y}">{escape(text)}</text>'))
        left += width
    return parts
