"""Small charts as inline SVG: they follow the page's colours, need no library, and say in words what they show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLOURS = 6
WIDTH = 640
Points = Sequence[tuple[float, float]]


def bars(values: Mapping[str, float], title: str, *, unit: str = "", colour: int = 0) -> str:
    """One horizontal bar a name, from zero; empty without values."""
    if not values:
        return ""
    left, row = min(12 + 7 * max(map(len, values)), 240), 24
    top = max(max(values.values()), 1e-12)
    height = row * len(values) + 8
    parts = []
    for index, (name, value) in enumerate(values.items()):
        y = 4 + row * index
        length = max(value, 0) / top * (WIDTH - left - 90)
        parts.append(
            f'<text x="{left - 8}" y="{y + 15}" text-anchor="end">{escape(_short(name, 32))}</text>'
            f'<rect x="{left}" y="{y + 3}" width="{length:.1f}" height="{row - 8}" rx="3" fill="var(--c{colour})"/>'
            f'<text x="{left + length + 6:.1f}" y="{y + 15}" class="soft">{value:.4g}{escape(unit)}</text>'
        )
    said = ", ".join(f"{name} {value:.4g}{unit}" for name, value in values.items())
    return _svg(height, f"{title}: {said}", parts)


def lines(series: Mapping[str, Points], title: str, *, x: str, y: str, from_zero: bool = False) -> str:
    """Curves with a legend; empty without points. x, y: what the axes are."""
    series = {name: list(points) for name, points in series.items() if points}
    if not series:
        return ""
    every = [point for points in series.values() for point in points]
    x_low, x_high = _range([a for a, _ in every], False)
    y_low, y_high = _range([b for _, b in every], from_zero)
    left, right, top, bottom, height = 58, 14, 12, 44, 260

    def place(a: float, b: float) -> tuple[float, float]:
        across = (a - x_low) / (x_high - x_low) * (WIDTH - left - right)
        up = (b - y_low) / (y_high - y_low) * (height - top - bottom)
        return left + across, height - bottom - up

    parts = []
    for value in _ticks(y_low, y_high):
        _, at = place(x_low, value)
        parts.append(
            f'<line class="axis" x1="{left}" x2="{WIDTH - right}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text x="{left - 6}" y="{at + 4:.1f}" text-anchor="end" class="soft">{value:.3g}</text>'
        )
    for value, anchor in ((x_low, "start"), (x_high, "end")):
        at, _ = place(value, y_low)
        parts.append(
            f'<text x="{at:.1f}" y="{height - bottom + 16}" text-anchor="{anchor}" class="soft">{value:g}</text>'
        )
    middle = (left + WIDTH - right) / 2
    parts.append(f'<text x="{middle:.0f}" y="{height - bottom + 16}" text-anchor="middle">{escape(x)}</text>')
    legend = left
    for index, (name, points) in enumerate(series.items()):
        colour = f"var(--c{index % COLOURS})"
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (place(*point) for point in points))
        if len(points) == 1:
            a, b = place(*points[0])
            parts.append(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3.5" fill="{colour}"/>')
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(
            f'<rect x="{legend}" y="{height - 16}" width="12" height="4" fill="{colour}"/>'
            f'<text x="{legend + 17}" y="{height - 10}">{escape(_short(name, 28))}</text>'
        )
        legend += 34 + 7 * len(_short(name, 28))
    ends = ", ".join(f"{name} ends at {points[-1][1]:.4g}" for name, points in series.items())
    return _svg(height, f"{title}: {y} by {x}; {ends}", parts, f"{title}: {y}")


def _svg(height: float, said: str, parts: Sequence[str], caption: str = "") -> str:
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><svg viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(said)}">{"".join(parts)}</svg>{below}</figure>'
    )


def _range(values: Sequence[float], from_zero: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    low = min(low, 0.0) if from_zero else low
    if math.isclose(low, high):
        return low - 0.5, high + 0.5
    return low, high


def _ticks(low: float, high: float) -> list[float]:
    """Four to nine round values between two ends."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(nice * power for nice in (5, 2, 1) if nice * power <= rough * (1 + 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(at * step, 12) for at in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
