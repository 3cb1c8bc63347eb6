"""Configurations and small public models shipped with the package, found from any working folder."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

#: Folders of shipped files; an installed package has them beside this file, a checkout at its root.
FOLDERS = ("configs", "checkpoints")


def find_shipped(name: str | Path) -> Path | None:
    """The shipped file with a relative name such as ``checkpoints/glyphs32-ldm.safetensors``, or None."""
    parts = PurePosixPath(str(name)).parts
    if not parts or parts[0] not in FOLDERS or ".." in parts:
        return None
    here = Path(__file__).parent
    checkout = here.parents[1]
    roots = [here, *([checkout] if (checkout / "pyproject.toml").is_file() else [])]
    return next((root.joinpath(*parts) for root in roots if root.joinpath(*parts).is_file()), None)
