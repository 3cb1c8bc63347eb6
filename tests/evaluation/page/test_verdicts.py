"""Every verdict is checked against the order of the numbers that it speaks of."""

from __future__ import annotations

import pytest

from ldm.evaluation.page.render import percent
from ldm.evaluation.page.verdicts import verdict
from ldm.evaluation.result import CHANCE, PUBLIC, REAL


@pytest.mark.parametrize(
    ("value", "better", "levels", "words"),
    [
        (10.0, "lower", {}, ""),
        (10.0, "lower", {REAL: 2.0, PUBLIC: 42.0}, "80 % of the way from the public model (42) to real images (2)"),
        (0.8, "higher", {REAL: 1.0, PUBLIC: 0.4}, "67 % of the way from the public model (0.4) to real images (1)"),
        (42.0, "lower", {REAL: 2.0, PUBLIC: 42.0}, "no better than the public model (42)"),
        (50.0, "lower", {REAL: 2.0, PUBLIC: 42.0}, "worse than the public model (42)"),
        (0.3, "higher", {PUBLIC: 0.4}, "worse than the public model (0.4)"),
        (0.5, "higher", {PUBLIC: 0.4}, "better than the public model (0.4)"),
        (1.5, "lower", {REAL: 2.0, PUBLIC: 42.0}, "as good as real images (2)"),
        (0.99, "higher", {REAL: 0.98}, "as good as real images (0.98)"),
        (3.0, "lower", {REAL: 2.0}, "1.5 times that of other real images (2)"),
        (900.0, "lower", {REAL: 2.0}, "real images reach 2"),  # a ratio of 450 says nothing
        (0.1, "lower", {REAL: -0.003}, "real images reach -0.003"),  # KID of real images may be negative
        (0.49, "higher", {REAL: 0.98}, "50 % of what real images reach (0.98)"),
    ],
)
def test_words(value: float, better: str, levels: dict[str, float], words: str) -> None:
    assert verdict(value, better, levels) == words


def test_guessing_comes_first_and_numbers_are_written_as_asked() -> None:
    levels = {CHANCE: 0.1, REAL: 0.98, PUBLIC: 0.05}
    assert verdict(0.1, "higher", levels, show=percent) == "no better than guessing (10.0 %)"
    assert verdict(0.5, "higher", {CHANCE: 0.1}, show=percent) == "guessing gives 10.0 %"


def test_a_difference_within_the_deviation_is_none() -> None:
    assert verdict(0.12, "higher", {CHANCE: 0.1}, deviation=0.03).startswith("no better than guessing")
    assert verdict(0.96, "higher", {REAL: 0.98}, deviation=0.03).startswith("as good as real images")
    assert verdict(39.0, "lower", {PUBLIC: 42.0}, deviation=3.5) == "no better than the public model (42)"
    assert verdict(45.0, "lower", {PUBLIC: 42.0}, deviation=3.5) == "no better than the public model (42)"
