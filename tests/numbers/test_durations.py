from __future__ import annotations

import pytest

from ldm.numbers import duration, time_left


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.2, "1 s"),
        (89, "89 s"),
        (90, "2 min"),
        (600, "10 min"),
        (5399, "90 min"),
        (5400, "1.5 h"),
        (7200, "2.0 h"),
        (172_799, "48.0 h"),
        (1e6, "11.6 days"),
    ],
)
def test_a_duration_is_in_the_unit_that_people_say(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_an_estimate_says_that_it_is_one() -> None:
    assert [time_left(seconds) for seconds in (3, 59.9, 3000, 9000)] == [
        "under a minute left",
        "under a minute left",
        "about 50 min left",
        "about 2.5 h left",
    ]
