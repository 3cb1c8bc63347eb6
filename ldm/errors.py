"""Errors that are meant for the person at the keyboard, and help with misspelt names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake a person can correct.

    The text is one line: what was wrong, where, and what to type instead. Commands print it without a traceback
    and exit with code 2 (see :func:`ldm.cli.run`).
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """Give ``"; did you mean 'x'?"`` for the known name closest to ``name``, or ``""`` when none is close.

    Case is ignored when comparing, so that ``LatentDiffusion`` is found for ``latentdiffusion``.
    """
    by_folded = {candidate.casefold(): candidate for candidate in known}
    close = difflib.get_close_matches(name.casefold(), list(by_folded), n=1, cutoff=0.6)
    return f"; did you mean '{by_folded[close[0]]}'?" if close else ""
