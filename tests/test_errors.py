"""Messages of other libraries as one line, and suggestions for misspelt names."""

from __future__ import annotations

import pytest

from ldm.errors import all_lines, first_line, nearest


@pytest.mark.parametrize(
    ("message", "first", "whole"),
    [
        ("no route\nto host", "no route", "no route to host"),
        ("\n  \n  late \n", "late", "late"),
        ("", "ValueError", "ValueError"),
        (" \n", "ValueError", "ValueError"),
    ],
)
def test_a_message_is_one_line_and_never_empty(message: str, first: str, whole: str) -> None:
    assert (first_line(ValueError(message)), all_lines(ValueError(message))) == (first, whole)


def test_the_nearest_name_ignores_case_and_is_near() -> None:
    assert nearest("latentdiffusion", ["LatentDiffusion", "DDPM"]) == "; did you mean 'LatentDiffusion'?"
    assert nearest("x", ["LatentDiffusion", "DDPM"]) == ""
