"""Where the files lie that a configuration names: beside it, in the working folder, or among the shipped ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldm.shipped import find_shipped

#: Keys whose values are paths of files and folders.
PATH_KEYS = frozenset({"ckpt_path", "root", "path", "datadir", "data_root"})


def find_config(path: str | Path) -> Path:
    """A configuration as it is named, else the shipped one of that name; a missing file keeps its name."""
    path = Path(path)
    if path.is_absolute() or path.exists():
        return path
    return find_shipped(path) or path


def find_base(base: str, beside: Path) -> Path:
    """The file that a configuration builds on: beside it, else the shipped one of that name."""
    near = beside.parent / base
    return near if near.exists() else find_shipped(base) or near


def with_found_paths(values: Any, beside: Path) -> Any:
    """The values of a configuration with the relative paths in it found; see `find_named`."""
    if isinstance(values, dict):
        return {
            key: _found(value, beside) if key in PATH_KEYS else with_found_paths(value, beside)
            for key, value in values.items()
        }
    return [with_found_paths(value, beside) for value in values] if isinstance(values, list) else values


def find_named(name: str, beside: Path) -> str:
    """A relative path that the file ``beside`` names: relative to it, else to the working folder, else shipped.

    A path that leads nowhere, or to the same place in the working folder, stays as it is written.
    """
    path = Path(name)
    if not name or path.is_absolute() or name.startswith(("~", "$")):
        return name
    try:
        near = beside.absolute().parent / path
        if near.exists():
            return name if path.exists() and path.samefile(near) else str(near)
        if path.exists():
            return name
    except (OSError, ValueError):  # a value that no file system takes as a name
        return name
    shipped = find_shipped(name)
    return name if shipped is None else str(shipped)


def _found(value: Any, beside: Path) -> Any:
    if isinstance(value, str):
        return find_named(value, beside)
    if isinstance(value, list):
        return [find_named(item, beside) if isinstance(item, str) else with_found_paths(item, beside) for item in value]
    return with_found_paths(value, beside)
