"""Search for the files that a configuration names: beside it, in the working folder, or among the shipped files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldm.shipped import find_shipped

#: Keys with paths of files and folders as values.
PATH_KEYS = frozenset({"ckpt_path", "root", "path", "datadir", "data_root", "frame"})


def find_config(path: str | Path) -> Path:
    """The configuration at ``path``, else the shipped one of that name, else ``path`` unchanged."""
    path = Path(path)
    if path.is_absolute() or path.exists():
        return path
    return find_shipped(path) or path


def find_base(base: str, beside: Path) -> Path:
    """A base file of a configuration: the one beside it, else the shipped one of that name."""
    near = beside.parent / base
    return near if near.exists() else find_shipped(base) or near


def with_found_paths(values: Any, beside: Path) -> Any:
    """The values of a configuration with its relative paths resolved; see `find_named`."""
    if isinstance(values, dict):
        return {
            key: _found(value, beside) if key in PATH_KEYS else with_found_paths(value, beside)
            for key, value in values.items()
        }
    return [with_found_paths(value, beside) for value in values] if isinstance(values, list) else values


def find_named(name: str, beside: Path) -> str:
    """Resolve a relative path from the file ``beside``: beside that file, else in the working folder, else shipped.

    A path that does not exist, or that names the same file from the working folder, is returned unchanged.
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
    except (OSError, ValueError):  # the value is not a valid file name
        return name
    shipped = find_shipped(name)
    return name if shipped is None else str(shipped)


def _found(value: Any, beside: Path) -> Any:
    if isinstance(value, str):
        return find_named(value, beside)
    if isinstance(value, list):
        return [find_named(item, beside) if isinstance(item, str) else with_found_paths(item, beside) for item in value]
    return with_found_paths(value, beside)
