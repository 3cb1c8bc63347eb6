"""Values of a configuration and the kinds that constructors are annotated with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ldm.config.values import annotated_kinds, fitting_values
from ldm.errors import UserError


class Base:
    def __init__(self, root: str | os.PathLike | None = None, size: int | None = None):
        self.root, self.size = root, size


class Images(Base):
    def __init__(self, rate: float = 0.5, flag: bool = False, name: str = "", steps: int | list = 0, **kwargs: Any):
        super().__init__(**kwargs)
        self.rest = (rate, flag, name, steps)


def read(**params: Any) -> dict[str, Any]:
    return fitting_values("Images", Images, params)


def test_kinds_are_those_of_all_constructors() -> None:
    assert annotated_kinds(Images) == {
        "rate": {"float"},
        "flag": {"bool"},
        "name": {"str"},
        "root": {"str", "os.PathLike", "None"},
        "size": {"int", "None"},
    }


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("root", 2024, "2024"),
        ("root", Path("x"), Path("x")),
        ("root", None, None),
        ("size", "32", 32),
        ("size", 32.0, 32),
        ("rate", "1e-3", 1e-3),
        ("rate", 1, 1),
        ("flag", 1, True),
        ("flag", "no", False),
        ("name", 7, "7"),
        ("steps", "any", "any"),
    ],
)
def test_what_can_be_read_is_read(name: str, given: Any, wanted: Any) -> None:
    found = read(**{name: given})[name]
    assert found == wanted and type(found) is type(wanted)


@pytest.mark.parametrize(
    ("name", "given", "line"),
    [
        ("size", True, "Images: size is true, expected a number"),
        ("rate", False, "Images: rate is false, expected a number"),
        ("size", 1.5, "Images: size is 1.5, expected a whole number"),
        ("size", "logs", "Images: size is 'logs', expected a whole number"),
        ("rate", "a/b", "Images: rate is 'a/b', expected a number"),
        ("flag", "perhaps", "Images: flag is 'perhaps', expected true or false"),
        ("flag", 3, "Images: flag is 3, expected true or false"),
        ("root", 1.5, "Images: root is the number 1.5, expected text; put it in quotes"),
        ("root", True, "Images: root is true, expected text; put it in quotes"),
    ],
)
def test_what_cannot_is_refused(name: str, given: Any, line: str) -> None:
    with pytest.raises(UserError, match=line):
        read(**{name: given})
