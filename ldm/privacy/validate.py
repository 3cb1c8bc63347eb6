"""Checks of public constants: a known word, a number in a range, a whole number, a line of text."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

from ldm.errors import UserError, nearest

#: Marks that turn the direction of writing, so that the text after them is shown in another order.
_TURNED = frozenset(range(0x202A, 0x202F)) | frozenset(range(0x2066, 0x206A))


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


def is_line(text: object) -> bool:
    """Whether ``text`` is one line of text, in any language, that is shown in the order in which it is stored.

    Control characters, line separators, halves of characters, and marks that turn the direction of writing are not.
    """
    return isinstance(text, str) and not any(
        ord(character) in _TURNED or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in text
    )


def lines(what: str, values: object) -> tuple[str, ...]:
    """The texts of a list. Raises UserError unless ``values`` is a list of lines of text."""
    if not isinstance(values, (list, tuple)):
        raise UserError(f"{what} is {values!r}, it must be a list of texts: [first, second]")
    for value in values:
        if not is_line(value):
            raise UserError(f"{what} has {value!r}, it must be one line of text; put it in quotes")
    return tuple(values)
