"""Writing files as a whole or not at all, digests of files, and checks that a folder can be written to."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from ldm.errors import UserError


def write_atomic(path: str | Path, write: Callable[[Path], None]) -> None:
    """Write a file so that ``path`` holds either its old content or all of the new one, whatever happens.

    ``write`` gets a temporary name in the same folder with the same suffix (so that writers that go by the suffix
    behave); the file is flushed to the disk and then renamed. Missing folders are created. Who may read the file is up
    to the umask, also when ``write`` makes a file that only its owner may read.

    Raises:
        UserError: when the folder cannot be written to. What ``write`` raises passes through.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"cannot write '{path}': it is a folder; add a file name")
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = stat.S_IMODE(temporary.stat().st_mode)
    except OSError as error:
        raise UserError(f"cannot write '{path}': {error.strerror or error}") from None
    try:
        write(temporary)
        temporary.chmod(mode)
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def require_regular_file(path: str | Path) -> int:
    """The size in bytes of a plain file, asked for before anything opens it.

    Opening a pipe waits for a writer, and a device such as ``/dev/zero`` never ends; links to them count as them.

    Raises:
        UserError: for a path that is a folder, a pipe, a socket or a device, or that cannot be looked up. A missing
            file raises FileNotFoundError, since its reader knows where the file should come from.
    """
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read '{path}': {getattr(error, 'strerror', None) or error}") from None
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"cannot read '{path}': it is a folder; name a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise UserError(f"cannot read '{path}': it is a pipe or a device, not a file; copy its content to a file")
    return status.st_size


def file_digest(path: str | Path) -> str:
    """The sha256 of a file as 64 hexadecimal digits.

    Raises:
        UserError: when the file cannot be read.
    """
    with contextlib.suppress(FileNotFoundError):
        require_regular_file(path)
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror or error}") from None


def require_regular(path: str | Path) -> None:
    """Raise UserError for what is no ordinary file, such as a pipe or a device, and would be read for ever."""
    try:
        mode = Path(path).stat().st_mode
    except OSError as error:
        raise UserError(f"cannot read '{path}': {error.strerror or error}") from None
    if stat.S_ISDIR(mode):
        raise UserError(f"'{path}' is a folder; name a file in it")
    if not stat.S_ISREG(mode):
        raise UserError(f"'{path}' is no ordinary file but a pipe or a device; copy its content to a file")


def read_json(path: str | Path, largest: int) -> Any:
    """The content of a JSON file of at most ``largest`` bytes.

    Raises:
        UserError: when it cannot be read, is larger, is not JSON, is nested too deep, or holds NaN or a number of
            thousands of digits.
    """
    require_regular(path)
    try:
        if Path(path).stat().st_size > largest:
            raise UserError(f"'{path}' is larger than {largest} bytes; it is refused")
        return json.loads(Path(path).read_text(encoding="utf-8"), parse_constant=_no_number)
    except RecursionError:
        raise UserError(f"'{path}' is nested too deep; it is refused") from None
    except (OSError, ValueError) as error:  # ValueError: bad JSON, bad text, numbers of thousands of digits
        raise UserError(f"'{path}' is not readable JSON: {error}") from None


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def _sync(path: Path) -> None:
    """Flush a file or a folder entry to the disk, where the file system knows how."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_writable(folder: Path, flag: str) -> None:
    """Raise UserError, naming ``flag``, when ``folder`` could not be made or written in. Leaves nothing behind."""
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(f"{flag} {folder}: cannot be written to ({error.strerror}); name another folder") from None


def require_writable(path: str | Path) -> None:
    """Raise UserError now when `path` could not be written after a long computation."""
    path = Path(path).absolute()
    folder = next(parent for parent in path.parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"cannot write {path}; give --output a file name in a folder you can write to")
