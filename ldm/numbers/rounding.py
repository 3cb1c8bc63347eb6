"""Privacy numbers as text: upper bounds are rounded up and lower bounds down, so that no text claims too much.

>>> rounded_up(9.996056), rounded_down(9.996956), rounded_up(1.5148571e-06, 6)
('9.997', '9.996', '1.51486e-06')
"""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

#: Digits that an accountant's number has at most; further ones are rounding errors of float64, as in 0.1 + 0.2.
_TRUSTED = 12


def rounded_up(value: float, digits: int = 4) -> str:
    """The smallest number of ``digits`` significant digits that is not below ``value``; "unbounded" for infinity."""
    return _rounded(value, digits, ROUND_CEILING)


def rounded_down(value: float, digits: int = 4) -> str:
    """The largest number of ``digits`` significant digits that is not above ``value``; "0" for a negative one."""
    return _rounded(max(value, 0.0), digits, ROUND_FLOOR)


def _rounded(value: float, digits: int, direction: str) -> str:
    if not math.isfinite(value):
        return "unbounded"
    exact = Decimal(f"{value:.{_TRUSTED}g}")
    if exact == 0:
        return "0"
    step = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    return f"{float(exact.quantize(step, rounding=direction)):.{digits}g}"
