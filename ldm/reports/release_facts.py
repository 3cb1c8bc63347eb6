"""`ReleaseFacts`: statements of the data's owner about a release, beside the facts that the run proves."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ldm.errors import UserError, nearest
from ldm.files import read_json
from ldm.privacy.validate import is_line

FORMAT = "dp-ldm release"
VERSION = 1
LARGEST = 2**20  # bytes
LONGEST = 2_000  # characters of one text; a card prints on one page


@dataclass(frozen=True)
class ReleaseFacts:
    """Statements of the owner; each appears on the card, empty ones as a line to fill in by hand.

    ``title``, ``curator``, ``contact``, ``intended_use``: free text. ``class_names``: public names of the classes, in
    the order of their labels. ``tuning``: settings that were tried, and on which data. ``licence``: of the weights.
    ``date``: ISO date of the release. ``audit``: result of an audit, such as a lower bound on epsilon, if there is one.

    Raises UserError for a text that is no line (with several lines it could look like a part of the card), for class
    names that are empty or alike, and for a date that is none.
    """

    title: str = ""
    curator: str = ""
    contact: str = ""
    intended_use: str = ""
    class_names: tuple[str, ...] = ()
    tuning: str = ""
    licence: str = ""
    date: str = ""
    audit: str = ""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            for text in value if field.name == "class_names" else (value,):
                if not is_line(text):
                    raise UserError(f"{field.name} is {text!r}, it must be one line of text without control characters")
                if len(text) > LONGEST:
                    raise UserError(f"{field.name} has {len(text):,} characters, more than {LONGEST:,}; shorten it")
        names = self.class_names
        if not all(name.strip() for name in names) or len(set(names)) < len(names):
            raise UserError(f"class_names are {', '.join(map(repr, names))}: give each class a name of its own")
        if self.date and not _is_date(self.date):
            raise UserError(f"date is {self.date!r}, it must be a day such as 2026-11-30")

    def check_for(self, declared: Sequence[str]) -> None:
        """Raise UserError unless there are as many class names as the run's configuration has ``declared``, if any."""
        if declared and self.class_names and len(self.class_names) != len(declared):
            raise UserError(
                f"--class-names: {len(self.class_names)} names for the {len(declared)} classes of the run "
                f"({', '.join(declared)}); give one for each, or leave the flag out"
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {"format": FORMAT, "version": VERSION, **asdict(self), "class_names": list(self.class_names)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ReleaseFacts:
        """Read the dict of `to_dict`. Raises UserError for another format, an unknown key or a value of wrong type."""
        if not isinstance(values, Mapping) or values.get("format") != FORMAT or values.get("version") != VERSION:
            raise UserError(f"not a {FORMAT} of version {VERSION}")
        names = [field.name for field in fields(cls)]
        own = {key: value for key, value in values.items() if key not in ("format", "version")}
        for key, value in own.items():
            if key not in names:
                raise UserError(f"unknown key {key!r}{nearest(key, names)}")
            words = value if key == "class_names" and isinstance(value, list) else [value]
            if not all(isinstance(word, str) for word in words):
                raise UserError(f"{key} is {value!r}, expected text")
        return cls(**{**own, "class_names": tuple(own.get("class_names", ()))})

    @classmethod
    def read(cls, path: Path) -> ReleaseFacts:
        """Read ``release.json``. Raises UserError naming the file."""
        try:
            return cls.from_dict(read_json(path, LARGEST))
        except UserError as error:
            raise UserError(f"{path}: {error}") from None


def _is_date(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
