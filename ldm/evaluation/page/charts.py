"""Small charts as inline SVG, with the page's light and dark colours and a text description.

Python computes the coordinates; the templates `bars.svg` and `lines.svg` hold the markup. matplotlib's SVG would have
fixed colours, and 40 kB of letter outlines in each chart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from markupsafe import Markup

from ldm.evaluation.page.render import render

COLOURS = 6
WIDTH, HEIGHT = 640, 260
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 44
ROW = 24  # height of a bar
Points = Sequence[tuple[float, float]]


def bars(values: Mapping[str, float], title: str, *, unit: str = "") -> Markup:
    """One horizontal bar per name, from zero; an empty string without values."""
    if not values:
        return Markup()
    left = min(12 + 7 * max(map(len, values)), 240)
    top = max(max(values.values()), 1e-12)
    rows = [
        {
            "name": _short(name, 32),
            "y": 4 + ROW * index,
            "length": round(max(value, 0) / top * (WIDTH - left - 90), 1),
            "text": f"{value:.4g}{unit}",
        }
        for index, (name, value) in enumerate(values.items())
    ]
    description = f"{title}: " + ", ".join(f"{name} {value:.4g}{unit}" for name, value in values.items())
    return render("bars.svg", rows=rows, left=left, width=WIDTH, height=ROW * len(rows) + 8, description=description)


def lines(
    series: Mapping[str, Points],
    title: str,
    *,
    x: str,
    y: str,
    from_zero: bool = False,
    show: Callable[[float], str] = "{:.4g}".format,
    show_x: Callable[[float], str] = "{:g}".format,
) -> Markup:
    """Curves with a legend; an empty string without points. x, y: labels of the axes. A single point is a dot.

    show, show_x: write a value of y, and of x.
    """
    series = {name: list(points) for name, points in series.items() if points}
    if not series:
        return Markup()
    every = [point for points in series.values() for point in points]
    x_low, x_high = _range([a for a, _ in every], False)
    y_low, y_high = _range([b for _, b in every], from_zero)

    def place(a: float, b: float) -> tuple[float, float]:
        across = (a - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)
        up = (b - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)
        return round(LEFT + across, 1), round(HEIGHT - BOTTOM - up, 1)

    curves, legend = [], LEFT
    for index, (name, points) in enumerate(series.items()):
        label = _short(name, 28)
        curves.append({"label": label, "legend": legend, "colour": index % COLOURS, "at": [place(*p) for p in points]})
        legend += 34 + 7 * len(label)
    ends = ", ".join(f"{name} ends at {show(points[-1][1])}" for name, points in series.items())
    return render(
        "lines.svg",
        curves=curves,
        ticks=[(place(x_low, value)[1], f"{value:.3g}") for value in _ticks(y_low, y_high)],
        ends=[(place(x_low, y_low)[0], "start", show_x(x_low)), (place(x_high, y_low)[0], "end", show_x(x_high))],
        frame={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "bottom": HEIGHT - BOTTOM},
        x=x,
        description=f"{title}: {y} by {x}; {ends}",
        caption=f"{title}: {y}",
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
