"""The newest checkpoint of a run, found without torch and without reading a tensor."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

LAST = "last.ckpt"


class _Nothing(dict[Any, Any]):
    """Placeholder for every pickled object that is no plain value, such as tensors."""

    def __new__(cls, *_: Any, **__: Any) -> _Nothing:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        """Keep nothing."""

    def append(self, item: Any) -> None:
        """Keep nothing."""

    extend = add = append
    __hash__ = object.__hash__  # type: ignore[assignment]


class _PlainValues(pickle.Unpickler):
    """Reads the plain values of a checkpoint; every global it names is replaced by a placeholder class."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        return _Nothing

    def persistent_load(self, pid: Any) -> Any:
        return _Nothing()


def steps_of(path: Path) -> int | None:
    """The step of a training checkpoint; None for an incomplete or weights-only file.

    Nothing in the file is executed. Every entry of the archive must lie within the file, which detects truncated files;
    damaged bytes are found only on reading.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            with archive.open(name) as file:
                content = _PlainValues(file).load()
        steps = content["global_step"]
        return steps if isinstance(steps, int) and "optimizer_states" in content else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, EOFError, RecursionError):
        return None
    except (zipfile.BadZipFile, pickle.UnpicklingError, MemoryError, ImportError, NotImplementedError):
        return None


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint with the most steps; ties go to the last written file, and among hard links to ``last.ckpt``.

    Incomplete and weights-only files are skipped. If no complete file is found, returns ``last.ckpt`` if it exists, so
    that reading it reports the error.
    """
    found = []
    for path in folder.glob("*.ckpt"):
        steps = None if path.name.startswith(".") or not path.is_file() else steps_of(path)
        if steps is not None:
            found.append((steps, path.stat().st_mtime, path.name == LAST, path))
    if found:
        return max(found)[-1]
    last = folder / LAST
    return last if last.is_file() else None
