"""Exceptions for user errors, suggestions for misspelt names, and other libraries' messages as one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """An error that the user can correct.

    The message is one line with the problem, its location and the correction. Commands print it without a traceback
    and exit with code 2 (see :func:`ldm.cli.run`).
    """


class Stopped(BaseException):
    """A signal ended the command cleanly; ``signal`` is its number, the message explains how to continue.

    Like `KeyboardInterrupt`, it is not a subclass of Exception, so that error recovery does not catch it.
    """

    def __init__(self, signal: int, message: str):
        super().__init__(message)
        self.signal = signal


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name closest to ``name``, or ``""`` when none is close.

    The comparison ignores case, so that ``LatentDiffusion`` is found for ``latentdiffusion``.
    """
    by_folded = {candidate.casefold(): candidate for candidate in known}
    close = difflib.get_close_matches(name.casefold(), list(by_folded), n=1, cutoff=0.6)
    return f"; did you mean '{by_folded[close[0]]}'?" if close else ""


#: What libraries that write files themselves say when the disk is full, in errors that are no OSError.
_NO_SPACE = ("No space left on device", "os error 28", "Disk quota exceeded", "File too large", "iostream error")
_NO_SPACE_OF_TORCH = ("PytorchStreamWriter", "unexpected pos")


def says_full_disk(error: BaseException) -> bool:
    """Whether the message of a library's exception means a full disk."""
    return any(words in str(error) for words in (*_NO_SPACE, *_NO_SPACE_OF_TORCH))


def first_line(error: BaseException) -> str:
    """The first line with text of an exception's message; the name of its type for an empty message."""
    lines = (line.strip() for line in str(error).splitlines())
    return next(filter(None, lines), type(error).__name__)


def all_lines(error: BaseException) -> str:
    """The whole message of an exception as one line; the name of its type for an empty message."""
    return " ".join(str(error).split()) or type(error).__name__
