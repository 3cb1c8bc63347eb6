"""Errors that are meant for the person at the keyboard, and help with misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake a person can correct.

    The text is one line: what was wrong, where, and what to type instead. Commands print it without a traceback
    and exit with code 2 (see :func:`ldm.cli.run`).
    """


class Stopped(BaseException):
    """A signal ended the command in good order; ``signal`` is its number, the text says how to go on.

    No Exception, as `KeyboardInterrupt` is none: code that recovers from errors shall not recover from this.
    """

    def __init__(self, signal: int, message: str):
        super().__init__(message)
        self.signal = signal


def nearest(name: str, known: Iterable[str]) -> str:
    """Give ``"; did you mean 'x'?"`` for the known name closest to ``name``, or ``""`` when none is close.

    Case is ignored when comparing, so that ``LatentDiffusion`` is found for ``latentdiffusion``.
    """
    by_folded = {candidate.casefold(): candidate for candidate in known}
    close = difflib.get_close_matches(name.casefold(), list(by_folded), n=1, cutoff=0.6)
    return f"; did you mean '{by_folded[close[0]]}'?" if close else ""
