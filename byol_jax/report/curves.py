"""Line charts as SVG text, one curve a chart. Pure functions of numbers; no library, no script, nothing fetched.

Which curves a report shows is decided in write.py. Colours come from the page's style sheet (`STYLE`), so that the same
SVG can be read in light and in dark.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

__all__ = ["STYLE", "Reference", "line_chart", "round_ticks"]

WIDTH, HEIGHT = 460, 230
LEFT, RIGHT, TOP, BOTTOM = 56, 14, 14, 38
"""Margins around the axes, in SVG units; the labels of the ticks are in them."""
MAX_POINTS = 400
"""Of more points than this, only the smallest and the largest of each bucket are drawn, so that no spike is lost."""
HUGE = 1e100
"""Numbers beyond this are left out: the difference of two of them could overflow."""

STYLE = """
:root { --ink: #1d2733; --muted: #5c6b7a; --grid: #e3e7ec; --paper: #ffffff; --panel: #f7f8fa; --line: #1f6fb5;
  --good: #2b7a4b; --bad: #b3372e; color-scheme: light dark; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaef; --muted: #9aa8b6; --grid: #303943; --paper: #14181d;
  --panel: #1b2128; --line: #6cb2f2; --good: #6cc592; --bad: #f08a80; } }
svg.chart { display: block; width: 100%; height: auto; }
svg.chart text { font: 11px system-ui, sans-serif; fill: var(--muted); }
svg.chart .grid { stroke: var(--grid); stroke-width: 1; }
svg.chart .axis { stroke: var(--muted); stroke-width: 1; }
svg.chart .series { fill: none; stroke: var(--line); stroke-width: 1.75; stroke-linejoin: round; }
svg.chart .dot { fill: var(--line); }
svg.chart .reference { stroke-width: 1.25; stroke-dasharray: 5 4; }
svg.chart .good { stroke: var(--good); } svg.chart text.good { fill: var(--good); stroke: none; }
svg.chart .plain { stroke: var(--muted); }
svg.chart text.plain { stroke: none; }
svg.chart .bad { stroke: var(--bad); } svg.chart text.bad { fill: var(--bad); stroke: none; }
"""


class Reference(NamedTuple):
    """A level to compare a curve with: its value, its label, and whether a curve there is "good", "bad" or "plain"."""

    value: float
    label: str
    kind: str = "good"


def line_chart(
    points: Iterable[tuple[object, object]], *, name: str, x_label: str = "step", references: Sequence[Reference] = ()
) -> str:
    """One curve as an SVG element.

    Args:
        points: (x, y) in any order. A point whose x is no finite number is left out; one whose y is none leaves a gap.
        name: what screen readers say.
        x_label: the text below the axis.
        references: dashed horizontal lines with labels; the y axis is long enough to show them.

    Returns:
        `<svg …>…</svg>`, or "" where no point has a finite y.

    Example:
        >>> line_chart([(0, 1.0), (10, 0.5)], name="loss").count("<path")
        1
    """
    known = sorted(
        ((x, _finite_number(y)) for x, y in ((_finite_number(x), y) for x, y in points) if x is not None), key=_x_value
    )
    values = [y for _, y in known if y is not None]
    if not values:
        return ""
    levels = [reference.value for reference in references]
    y_ticks = round_ticks(*_with_zero(min(values + levels), max(values + levels)))
    x_range = _with_zero(known[0][0], known[-1][0])
    x_ticks = round_ticks(*x_range, whole=True)
    x_range = x_range if x_range[0] < x_range[1] else (x_ticks[0], x_ticks[-1])

    def x_pixel(x: float) -> float:
        return LEFT + (x - x_range[0]) / (x_range[1] - x_range[0]) * (WIDTH - LEFT - RIGHT)

    def y_pixel(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0]) * (HEIGHT - TOP - BOTTOM)

    x_inside = [(x_pixel(tick), _label(tick, x_ticks)) for tick in x_ticks if x_range[0] <= tick <= x_range[1]]
    y_inside = [(y_pixel(tick), _label(tick, y_ticks)) for tick in y_ticks]
    parts = _axes(x_inside, y_inside, x_label)
    for reference in references:
        parts += _reference(y_pixel(reference.value), reference)
    parts += _series([[(x_pixel(x), y_pixel(y)) for x, y in part] for part in _parts(_thin(known))])
    head = f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">'
    return "\n".join([head, *parts, "</svg>"])


def round_ticks(low: float, high: float, *, count: int = 5, whole: bool = False) -> list[float]:
    """About `count` multiples of 1, 2 or 5 times a power of ten that enclose [low, high]; at least two.

    Example:
        >>> round_ticks(0.0, 0.93)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    if high - low <= max(1e-9 * max(abs(low), abs(high)), 1e-200):  # nothing between them that a label could show
        room = abs(low) / 10 or 1.0
        low, high = low - (room if low else 0.0), high + room
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * min((1, 2, 5, 10), key=lambda multiple: abs(math.log(multiple * power / rough)))
    step = max(step, 1.0) if whole else step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, max(last, first + 1) + 1)]


def _with_zero(low: float, high: float) -> tuple[float, float]:
    """A range that starts at 0, so that heights compare, unless the curve would fill less than a tenth of it."""
    return (0.0, high) if 0 <= low < 0.9 * high else (low, high)


def _finite_number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < HUGE:
        return float(value)
    return None


def _x_value(point: tuple[float, float | None]) -> float:
    return point[0]


def _label(tick: float, ticks: Sequence[float]) -> str:
    step = ticks[1] - ticks[0]
    if max(map(abs, ticks)) >= 1e7 or step < 1e-5:
        return f"{tick:.3g}"
    return f"{tick:,.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


def _thin(points: list[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """At most about `MAX_POINTS` of them; the smallest and the largest y of each bucket stay."""
    if len(points) <= MAX_POINTS:
        return points
    bucket = math.ceil(2 * len(points) / MAX_POINTS)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), bucket):
        inside = range(start, min(start + bucket, len(points)))
        finite = [(y, index) for index in inside if (y := points[index][1]) is not None]
        kept |= {min(finite)[1], max(finite)[1]} if finite else {start}
    return [points[index] for index in sorted(kept)]


def _parts(points: list[tuple[float, float | None]]) -> list[list[tuple[float, float]]]:
    """Runs of points between the gaps."""
    parts: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if y is not None:
            parts[-1].append((x, y))
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


def _axes(across: list[tuple[float, str]], down: list[tuple[float, str]], x_label: str) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = [f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>' for y, _ in down]
    parts += [f'<text x="{LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{text}</text>' for y, text in down]
    parts.append(f'<line class="axis" x1="{LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    for x, text in across:
        anchor = "end" if x > right - 12 else "middle"  # the last label must not leave the picture
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="{anchor}">{text}</text>')
    parts.append(f'<text x="{(LEFT + right) / 2}" y="{HEIGHT - 5}" text-anchor="middle">{escape(x_label)}</text>')
    return parts


def _reference(y: float, reference: Reference) -> list[str]:
    return [
        f'<line class="reference {reference.kind}" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>',
        f'<text class="{reference.kind}" x="{WIDTH - RIGHT - 3}" y="{y - 5:.1f}" text-anchor="end">'
        f"{escape(reference.label)}</text>",
    ]


def _series(parts: list[list[tuple[float, float]]]) -> list[str]:
    shapes = []
    for part in parts:
        if len(part) == 1:  # a line of one point would be invisible
            shapes.append(f'<circle class="dot" cx="{part[0][0]:.1f}" cy="{part[0][1]:.1f}" r="2.5"/>')
        else:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in part)
            shapes.append(f'<path class="series" d="M{path}"/>')
    return shapes
