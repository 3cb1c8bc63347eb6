"""`ReleaseFacts`: statements of the data's owner about a release, beside the facts that the run proves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ldm.errors import UserError, nearest
from ldm.files import read_json

FORMAT = "dp-ldm release"
VERSION = 1
LARGEST = 2**20  # bytes


@dataclass(frozen=True)
class ReleaseFacts:
    """Statements of the owner; each appears on the card, empty ones as a line to fill in by hand.

    ``title``, ``curator``, ``contact``, ``intended_use``: free text. ``class_names``: public names of the classes, in
    the order of their labels. ``tuning``: settings that were tried, and on which data. ``licence``: of the weights.
    ``date``: ISO date of the release. ``audit``: result of an audit, such as a lower bound on epsilon, if there is one.
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
