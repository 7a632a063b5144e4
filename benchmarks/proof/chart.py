"""Two charts as SVG text: curves of several runs, and a dot for each run. Pure functions of numbers.

Nothing is averaged: every seed is drawn. The page's other charts are in byol_jax/report.
"""

from collections.abc import Mapping, Sequence
from html import escape

from byol_jax.report.curves import STYLE, round_ticks

__all__ = ["curve_chart", "dot_chart", "sheet"]

WIDTH, HEIGHT = 460, 250
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 34, 40
NAMES, LINE = 250, 22
"""Of the chart of dots: width of the names, height of a line."""
STROKES = (("--line", ""), ("--bad", ' stroke-dasharray="6 3"'))
"""Colour and dashes of each curve's runs, in their order; told apart without colour too."""


def curve_chart(curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]], *, title: str, x_label: str) -> str:
    """Up to two names, each with the curves of its runs and a line in the legend; "" without any point.

    Example:
        >>> curve_chart({"a": [[(0, 1.0), (1, 2.0)], [(0, 1.5), (1, 2.5)]]}, title="t", x_label="x").count("<path")
        3
    """
    points = [point for runs in curves.values() for run in runs for point in run]
    if not points:
        return ""
    across = round_ticks(0.0, max(x for x, _ in points))
    up = round_ticks(min(y for _, y in points), max(y for _, y in points))

    def x_pixel(x: float) -> float:
        return LEFT + (x - across[0]) / (across[-1] - across[0]) * (WIDTH - LEFT - RIGHT)

    def y_pixel(y: float) -> float:
        return HEIGHT - BOTTOM - (y - up[0]) / (up[-1] - up[0]) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text class="title" x="{LEFT}" y="16">{escape(title)}</text>']
    for tick in up:
        y = y_pixel(tick)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    parts += [f'<text x="{x_pixel(x):.1f}" y="{HEIGHT - 24}" text-anchor="middle">{x:g}</text>' for x in across]
    parts.append(f'<text x="{(LEFT + WIDTH) / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    for number, ((name, runs), (color, dashes)) in enumerate(zip(curves.items(), STROKES, strict=False)):
        for run in runs:
            path = "L".join(f"{x_pixel(x):.1f} {y_pixel(y):.1f}" for x, y in run)
            parts.append(f'<path d="M{path}" class="series" style="stroke: var({color})"{dashes}/>')
        x, y = WIDTH - RIGHT - 130, HEIGHT - BOTTOM - 30 + 16 * number
        parts.append(f'<path d="M{x} {y}h24" class="series" style="stroke: var({color})"{dashes}/>')
        parts.append(f'<text x="{x + 30}" y="{y + 4}">{escape(name)}</text>')
    return _chart(parts, WIDTH, HEIGHT)


def dot_chart(values: Mapping[str, Sequence[float]], *, title: str, x_label: str) -> str:
    """A line for each name, a dot for each of its values; "" without any value.

    Example:
        >>> dot_chart({"a": [1.0, 2.0], "b": [1.5]}, title="t", x_label="x").count("<circle")
        3
    """
    known = [value for several in values.values() for value in several]
    if not known:
        return ""
    ticks = round_ticks(min(known), max(known))
    height = TOP + LINE * len(values) + BOTTOM

    def x_pixel(x: float) -> float:
        return NAMES + (x - ticks[0]) / (ticks[-1] - ticks[0]) * (2 * WIDTH - NAMES - 30)

    parts = [f'<text class="title" x="8" y="16">{escape(title)}</text>']
    for tick in ticks:
        x = x_pixel(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP - 8}" y2="{height - BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - BOTTOM + 14}" text-anchor="middle">{tick:g}</text>')
    for number, (name, several) in enumerate(values.items()):
        y = TOP + LINE * (number + 0.5)
        parts.append(f'<text x="{NAMES - 14}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        parts += [f'<circle class="dot" cx="{x_pixel(x):.1f}" cy="{y:.1f}" r="4" fill-opacity="0.7"/>' for x in several]
    parts.append(f'<text x="{(NAMES + 2 * WIDTH) / 2}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>')
    return _chart(parts, 2 * WIDTH, height)


def _chart(parts: Sequence[str], width: int, height: int) -> str:
    return "\n".join([f'<svg class="chart" width="{width}" height="{height}">', *parts, "</svg>"])


def sheet(charts: Sequence[str], *, columns: int) -> str:
    """Charts of one size side by side as an SVG page of its own, in the colours of the reader's light or dark mode."""
    rows = -(-len(charts) // columns)
    width, height = (int(word.split('"')[1]) for word in charts[0].split()[2:4])  # as `_chart` wrote them
    style = f"<style>{STYLE} text {{ font: 11px system-ui, sans-serif; fill: var(--muted); }}"
    style += " text.title { fill: var(--ink); font-weight: 600; } svg.chart { width: auto; height: auto; }</style>"
    placed = [
        f'<svg x="{width * (number % columns)}" y="{height * (number // columns)}">{chart}</svg>'
        for number, chart in enumerate(charts)
    ]
    size = f'width="{width * columns}" height="{height * rows}"'
    background = '<rect width="100%" height="100%" fill="var(--paper)"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}{background}{"".join(placed)}</svg>\n'
