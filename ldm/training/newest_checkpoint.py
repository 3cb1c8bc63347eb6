"""Which checkpoint of a run to go on from, told without torch and without reading a tensor."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

LAST = "last.ckpt"


class _Nothing(dict[Any, Any]):
    """Stands for everything in a pickle that is no plain value: tensors, and objects of any class."""

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
    """Reads the numbers and names of a checkpoint; whatever it asks to call becomes a class that does nothing."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        return _Nothing

    def persistent_load(self, pid: Any) -> Any:
        return _Nothing()


def steps_of(path: Path) -> int | None:
    """The step that a checkpoint of a training run was written after; None when it is not whole, or weights only.

    Nothing in the file is executed. Every entry of the archive has to lie within the file, as in one that was cut short
    they do not; whether their bytes are right is found when they are read.
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
    """The checkpoint that has come furthest, whatever its name; of equals the last written, of links ``last.ckpt``.

    Files that are not whole, or hold weights only, are passed over. Where no file can be told to be whole, it is
    ``last.ckpt`` if there is one: reading it says what is wrong with it.
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
