"""One sentence that compares a score with guessing, the public model, and real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from ldm.evaluation.page.render import number
from ldm.evaluation.result import CHANCE, PUBLIC, REAL

#: A ratio to real images above this is left out, because the two numbers already show it.
FARTHEST = 100.0


def verdict(
    value: float,
    better: str,
    levels: Mapping[str, float],
    *,
    deviation: float | None = None,
    show: Callable[[float], str] = number,
) -> str:
    """A comparison of `value` with the known levels; an empty string when no level is known.

    A difference of at most `deviation` counts as none. show: formats a number.
    """
    sign = 1 if better == "higher" else -1
    margin = deviation or 0.0
    chance, real, public = (levels.get(name) for name in (CHANCE, REAL, PUBLIC))

    def ahead(level: float) -> float:
        return sign * (value - level)

    if chance is not None and ahead(chance) <= margin:
        return f"no better than guessing ({show(chance)})"
    if real is not None and ahead(real) >= -margin:
        return f"as good as real images ({show(real)})"
    if public is not None and ahead(public) <= margin:
        word = "worse than" if ahead(public) < -margin else "no better than"
        return f"{word} the public model ({show(public)})"
    if public is not None and real is not None:
        way = 100 * ahead(public) / (sign * (real - public))
        return f"{way:.0f} % of the way from the public model ({show(public)}) to real images ({show(real)})"
    if public is not None:
        return f"better than the public model ({show(public)})"
    if real is not None:
        return _beside_real(value, real, better, show)
    return "" if chance is None else f"guessing gives {show(chance)}"


def _beside_real(value: float, real: float, better: str, show: Callable[[float], str]) -> str:
    if better == "higher" and real > 0:
        return f"{100 * value / real:.0f} % of what real images reach ({show(real)})"
    if better == "lower" and real > 0 and value / real <= FARTHEST:
        return f"{value / real:.2g} times that of other real images ({show(real)})"
    return f"real images reach {show(real)}"
