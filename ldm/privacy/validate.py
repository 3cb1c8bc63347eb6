"""Checks of public constants: a known word, a number in a range, a whole number."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ldm.errors import UserError, nearest


def one_of(what: str, value: object, known: Sequence[str]) -> None:
    """Raise UserError naming the nearest known value unless ``value`` is one of ``known``."""
    if value not in known:
        raise UserError(f"{what} is {value!r}, known are {', '.join(known)}{nearest(str(value), known)}")


def number(what: str, value: object, *, above: float, at_most: float = math.inf) -> None:
    """Raise UserError unless ``value`` is a finite number in (above, at_most]."""
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or not above < value <= at_most:  # type: ignore[arg-type, operator]
        limit = "" if math.isinf(at_most) else f" and at most {at_most:g}"
        raise UserError(f"{what} is {value!r}, it must be a number above {above:g}{limit}")


def whole(what: str, value: object, *, at_least: int = 1) -> None:
    """Raise UserError unless ``value`` is an integer of at least ``at_least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise UserError(f"{what} is {value!r}, it must be a whole number of at least {at_least}")
