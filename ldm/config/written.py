"""Values as a YAML file is written with them: paths, numbers, and names of folders.

A file that `dp-ldm new` writes is read by people, so that quotes stand only where YAML needs them. What YAML or the
configuration's variables would change is refused before anything is written.
"""

from __future__ import annotations

import json
import os
import re

from ldm.errors import UserError

#: Characters that no YAML file may hold, even in quotes. Bytes that are no UTF-8 are lone surrogates in Python.
_NO_TEXT = re.compile("[\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_PLAIN_PATH = re.compile(r"[\w./-]+")


def quoted(path: str) -> str:
    """A path as YAML takes it, with quotes only where there is more than letters, digits and ``. / _ -``."""
    return path if _PLAIN_PATH.fullmatch(path) else json.dumps(path, ensure_ascii=False)


def exact(value: float) -> str:
    """The shortest decimal number that is ``value``: 5 for 5.0, and every digit of 0.12345678."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def require_nameable(name: str) -> None:
    """Raise UserError for the name of a folder that would not be the same after it was written and read.

    These are bytes that are no UTF-8, control characters, and what reads as a variable or as somebody's home.
    """
    if _NO_TEXT.search(name):
        raise UserError(f"the folder name {name!r} has bytes that are no text in UTF-8; rename the folder")
    if "${" in name or os.path.expandvars(name) != name or name.startswith("~"):
        raise UserError(f"the folder name {name!r} reads as a variable ($) or a home (~) in a YAML file; rename it")
