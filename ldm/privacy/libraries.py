"""Calls of the accountants' libraries: without warnings that do not matter, and with one line where they break down."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

import numpy as np

from ldm.errors import UserError, first_line


@contextlib.contextmanager
def within_range(accountant: str) -> Iterator[None]:
    """Raise UserError for numbers at which an accountant's library breaks down, such as 10^20 steps."""
    try:
        yield
    except (ArithmeticError, ValueError, IndexError) as error:
        raise UserError(
            f"the {accountant} accountant cannot compute with these numbers ({first_line(error)[:100]}); are the "
            "steps, the sampling rate, the noise and delta what you meant?"
        ) from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the library's warning about Renyi orders that it leaves out; the bound holds without them."""
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    try:
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        absl.setLevel(level)
