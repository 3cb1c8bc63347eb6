"""`keep_settings`: results that were measured with other settings are not shown as those of today's."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ldm.errors import UserError
from ldm.files import read_json, write_text

LARGEST_SETTINGS = 2**20  # bytes
NAME = "settings.json"


def keep_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write ``settings`` (plain values) into ``folder``, or compare them with those written there before.

    A stage that is done is not run again, so that its result would otherwise pass for one of changed settings.
    Raises UserError naming the first setting that differs.
    """
    path = folder / NAME
    wanted = json.loads(json.dumps(settings))
    if path.is_file():
        differences = list(_differences(read_json(path, LARGEST_SETTINGS), wanted, ""))
        if differences:
            raise UserError(
                f"{folder}: earlier results there had other settings ({differences[0]}); name another --output folder"
            )
        return
    write_text(path, json.dumps(wanted, indent=2) + "\n")


def _differences(before: Any, now: Any, key: str) -> Iterator[str]:
    """``key: old value, now new value`` for every leaf that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(name), now.get(name), f"{key}.{name}" if key else name)
    elif before != now:
        yield f"{key}: {json.dumps(before)}, now {json.dumps(now)}"
