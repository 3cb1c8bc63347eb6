from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.numbers.rounding import rounded_down, rounded_up

POSITIVE = st.floats(min_value=1e-12, max_value=1e6)


@given(POSITIVE, st.integers(2, 6))
def test_a_text_is_never_on_the_wrong_side_of_the_number_by_more_than_float64(value: float, digits: int) -> None:
    above, below = Fraction(rounded_up(value, digits)), Fraction(rounded_down(value, digits))
    slack = Fraction(value) / 10**11
    assert above >= Fraction(value) - slack and below <= Fraction(value) + slack
    assert above - below <= Fraction(value) / 10 ** (digits - 1) + slack  # one unit of the last digit at most


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (9.996056, "9.997"),  # "%.4g" gives 9.996, a smaller epsilon than was spent
        (0.99930841, "0.9994"),
        (9.9996, "10"),
        (10.0, "10"),
        (0.1 + 0.2, "0.3"),  # an error of float64 is no digit
        (1e-5, "1e-05"),
        (0.0, "0"),
        (math.inf, "unbounded"),
    ],
)
def test_upper_bounds(value: float, text: str) -> None:
    assert rounded_up(value) == text


def test_lower_bounds() -> None:
    assert rounded_down(9.996956) == "9.996" and rounded_down(-1.0) == "0" and rounded_down(2.0) == "2"
