"""Charts as inline SVG that takes its colors from the page, so that light, dark and print fit.

Drawn at 440 × 250 units: about full width on a phone, half on a desk, type readable on both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 440, 250
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 40


@dataclass(frozen=True)
class Series:
    """A named curve; `marks` puts a dot with a tooltip on every point."""

    name: str
    points: Sequence[tuple[float, float]]
    color: int = 1  # 1 to 4, as the page defines them
    marks: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line, such as the floor."""

    name: str
    value: float


@dataclass(frozen=True)
class Chart:
    """What the page shows: a title, the drawing, and its legend as (color, name)."""

    title: str
    svg: Markup
    legend: list[tuple[str, str]]


class Axes:
    """Maps data to the drawing; `log` makes the vertical axis logarithmic."""

    def __init__(self, xs: tuple[float, float], ys: tuple[float, float], log: bool = False) -> None:
        self.xs, self.log = xs, log
        self.ys = tuple(math.log10(y) for y in ys) if log else ys

    def x(self, value: float) -> float:
        low, high = self.xs
        return LEFT + (value - low) / (high - low or 1) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.ys
        value = math.log10(value) if self.log else value
        return HEIGHT - BOTTOM - (value - low) / (high - low or 1) * (HEIGHT - TOP - BOTTOM)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x: str = "step",
    y: str = "",
    log: bool = False,
    level: Level | None = None,
    limits: tuple[float, float] | None = None,
) -> Chart:
    """Curves over a common axis; the alternative text says where each begins and ends."""
    drawn = [Series(s.name, _finite(s.points, log), s.color, s.marks) for s in series]
    drawn = [s for s in drawn if s.points]
    values = [value for s in drawn for _, value in s.points] + ([level.value] if level else [])
    log = log and min(values) > 0
    ys = limits or _padded(min(values), max(values), log)
    steps = [step for s in drawn for step, _ in s.points]
    axes = Axes((min(0.0, min(steps)), max(steps)), ys, log)
    parts = [_grid(axes, ys, x, y)]
    if level:
        parts.append(_level(axes, level))
    parts += [_curve(axes, s) for s in drawn]
    described = "; ".join(_describe(s) for s in drawn)
    if level:
        described += f"; {level.name} at {figure(level.value)}"
    # A single curve is what the title names.
    legend = [(f"c{s.color}", s.name) for s in drawn] if len(drawn) > 1 or level else []
    legend += [("level", f"{level.name} {figure(level.value)}")] if level else []
    return Chart(title, _svg(f"{title}. {described}", parts), legend)


def histogram(title: str, values: Sequence[float], bins: int, limits: tuple[float, float]) -> Chart:
    """Counts of values in equal bins; the last bin holds its upper limit too."""
    low, high = limits
    counts = [0] * bins
    for value in values:
        counts[min(bins - 1, max(0, int((value - low) / (high - low) * bins)))] += 1
    ys = (0.0, max(counts) * 1.05)
    axes = Axes(limits, ys)
    parts = [_grid(axes, ys, "score", "answers")]
    width = (high - low) / bins
    for i, count in enumerate(counts):
        left, right, top = axes.x(low + i * width), axes.x(low + (i + 1) * width), axes.y(count)
        span = f"{figure(low + i * width)}–{figure(low + (i + 1) * width)}"
        parts.append(
            f'<rect class="bar" x="{left + 1:.1f}" y="{top:.1f}" width="{right - left - 2:.1f}" '
            f'height="{HEIGHT - BOTTOM - top:.1f}" rx="2"><title>{span}: {count}</title></rect>'
        )
    shown = ", ".join(f"{figure(low + i * width)}: {count}" for i, count in enumerate(counts))
    return Chart(title, _svg(f"{title}. Answers by score from {shown}", parts), [])


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round values between two limits, about `count` of them."""
    span = (high - low) or 1.0
    rough = span / count
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 and their tens between two limits; powers of ten alone over many of them, and any
    round values where limits are so close that too few of those lie between."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    many = math.log10(high / low) > 2.5
    fine = math.log10(high / low) < 1.2
    digits = (1,) if many else (1, 1.5, 2, 3, 4, 5, 7) if fine else (1, 2, 5)
    found = [digit * 10.0**decade for decade in decades for digit in digits]
    inside = [value for value in found if low * 0.999 <= value <= high * 1.001]
    return inside if len(inside) > 2 else ticks(low, high)


def figure(value: float) -> str:
    """A number as a person writes it: four figures at most, thousands as k and M."""
    size = abs(value)
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= unit:
            scale = 1e3 if name == "k" else unit
            return f"{value / scale:.3g}{name}"
    if size and size < 1e-3:
        mantissa, exponent = f"{value:.1e}".split("e")
        return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
    return f"{value:.4g}"


def _finite(points: Sequence[tuple[float, float]], log: bool) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if math.isfinite(y) and (y > 0 or not log)]


def _padded(low: float, high: float, log: bool) -> tuple[float, float]:
    if log:
        room = (high / low) ** 0.06 if high > low else 1.1
        return low / room, high * room
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - room if low < 0 or low - room > 0 else 0.0, high + room


def _grid(axes: Axes, ys: tuple[float, float], x: str, y: str) -> str:
    lines = []
    for value in log_ticks(*ys) if axes.log else ticks(*ys):
        height = axes.y(value)
        lines.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" '
            f'y2="{height:.1f}"/><text x="{LEFT - 7}" y="{height + 4:.1f}" text-anchor="end">'
            f"{figure(value)}</text>"
        )
    base = HEIGHT - BOTTOM
    for value in ticks(*axes.xs):
        place = axes.x(value)
        lines.append(
            f'<line class="tick" x1="{place:.1f}" x2="{place:.1f}" y1="{base}" y2="{base + 4}"/>'
            f'<text x="{place:.1f}" y="{base + 17}" text-anchor="middle">{figure(value)}</text>'
        )
    lines.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines.append(
        f'<text class="name" x="{middle:.0f}" y="{HEIGHT - 5}" text-anchor="middle">'
        f"{escape(x)}</text>"
    )
    if y:
        center = (TOP + base) / 2
        lines.append(
            f'<text class="name" transform="translate(11 {center:.0f}) rotate(-90)" '
            f'text-anchor="middle">{escape(y)}</text>'
        )
    return "".join(lines)


def _curve(axes: Axes, series: Series) -> str:
    places = [(axes.x(step), axes.y(value)) for step, value in series.points]
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    parts = [f'<path class="curve c{series.color}" d="{path}"/>']
    if series.marks:
        for (x, y), (step, value) in zip(places, series.points):
            parts.append(
                f'<circle class="c{series.color}" cx="{x:.1f}" cy="{y:.1f}" r="2.6">'
                f"<title>{escape(series.name)} at {figure(step)}: {value:.4g}</title></circle>"
            )
    return "".join(parts)


def _level(axes: Axes, level: Level) -> str:
    height = axes.y(level.value)
    return (
        f'<line class="level" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" '
        f'y2="{height:.1f}"/>'
    )


def _describe(series: Series) -> str:
    (first_x, first), (last_x, last) = series.points[0], series.points[-1]
    return (
        f"{series.name} from {figure(first)} at {figure(first_x)} to {figure(last)} at "
        f"{figure(last_x)}"
    )


def _svg(alternative: str, parts: Sequence[str]) -> Markup:
    return Markup(
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(alternative)}">{"".join(parts)}</svg>'
    )
