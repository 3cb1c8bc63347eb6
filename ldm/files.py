"""Atomic writes of files and folders, digests, checksums of zip archives, and checks of paths before long work."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import secrets
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from ldm.errors import UserError, says_full_disk

#: Environment variable; 1 lets this process and its workers fetch missing files. The flag --download sets it.
DOWNLOAD_VARIABLE = "LDM_ALLOW_DOWNLOAD"

#: Exceptions that zipfile raises for damaged archives.
ZIP_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    NotImplementedError,
    RuntimeError,
    ValueError,
    OverflowError,
    IndexError,
    KeyError,
    EOFError,
)
_CHUNK = 2**20
LARGEST_TEXT = 2**28  # bytes of a list of images or captions
_END = struct.Struct("<4s6xH8xH")  # the end record of a zip archive: signature, number of members, length of comment


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a file atomically: after a failure ``path`` has either its old content or all of the new one.

    ``write`` receives a temporary path in the same folder with the same suffix, because some writers choose the format
    by suffix; the file is flushed to disk and then renamed. Missing folders are created. The umask sets the file's
    permissions, even if ``write`` creates a file that only its owner may read.

    Raises:
        UserError: when the folder is not writable. OSError with the name of ``path`` for a full disk, also when a
            library of ``write`` reports it in another form; other exceptions of ``write`` are not caught.
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
    except OSError as error:
        if error.errno is not None and error.filename in (None, os.fspath(temporary)):
            error.filename = os.fspath(path)  # the file that the user has named, or knows
        raise
    except Exception as error:
        if says_full_disk(error):  # of a library that writes files itself
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 file, atomically. Raises UserError as `write_atomic`."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomic(path, write)


def write_json(path: str | Path, content: Any) -> None:
    """Write plain values as indented JSON, atomically. Raises ValueError for NaN and infinity, which JSON lacks."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes that call this for the same folder out while the body runs.

    Without effect for a folder that cannot be opened, and on a system without locks.
    """
    try:
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        yield
        return
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # releases the lock


def check_new_folder(folder: Path, reason: str = "") -> None:
    """Raise UserError when ``folder`` exists or cannot be created; called before the work that fills it.

    ``reason``: why an existing folder is not taken, as words that continue "name a new folder".
    """
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{folder} exists; name a new folder{reason}")
    check_writable(folder.absolute().parent, f"{folder}: folder")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Write a folder atomically: the body fills a temporary one beside it, which is renamed when the body ends.

    After an exception neither folder is there. Missing parent folders are created. Call `check_new_folder` first.
    """
    staging = folder.absolute().parent / f".{folder.name}.{secrets.token_hex(4)}.tmp"
    try:
        staging.mkdir(parents=True)
        yield staging
        _name_new_folder(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _name_new_folder(staging: Path, folder: Path) -> None:
    """Give ``staging`` its name; raises UserError when another process has written something there meanwhile."""
    try:
        if folder.is_symlink() or folder.exists():  # an empty folder would be replaced, and it is not ours
            raise FileExistsError
        staging.rename(folder)
    except OSError as error:
        if isinstance(error, FileExistsError) or error.errno in (errno.ENOTEMPTY, errno.ENOTDIR):
            raise UserError(
                f"{folder} exists: another command has written it meanwhile, and it was left as it is; name another"
            ) from None
        raise


def downloads_allowed() -> bool:
    """Whether missing public files may be fetched."""
    return os.environ.get(DOWNLOAD_VARIABLE) == "1"


def require_regular_file(path: str | Path) -> int:
    """The size in bytes of a regular file, checked before the file is opened.

    Opening a pipe would wait for a writer, and a device such as ``/dev/zero`` never ends; links are followed.

    Raises:
        UserError: for a folder, a pipe, a socket, a device, or an inaccessible path. A missing file raises
            FileNotFoundError, so that the caller can say where to get it.
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


def read_text(path: str | Path, largest: int = LARGEST_TEXT) -> str:
    """The content of a UTF-8 text file of at most ``largest`` bytes.

    Raises:
        UserError: when it is no regular file, is larger, or is not text. A missing file raises FileNotFoundError.
    """
    if require_regular_file(path) > largest:
        raise UserError(f"cannot read '{path}': it is larger than {largest} bytes; name a text file")
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read '{path}' as text: {getattr(error, 'strerror', None) or error}") from None


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


def verify_zip(path: str | Path, advice: str = "copy or download it again") -> bool:
    """Read a zip archive and compare each member with its checksum; whether every member has one.

    A checksum of 0 means that the writer computed none; a member of random content has it once in 2^32.

    Raises:
        UserError: when a member's bytes have another checksum; the message ends with ``advice``.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _require_all_entries(path, len(archive.infolist()))
            members = [member for member in archive.infolist() if member.file_size]
            for member in members:
                if member.CRC:
                    with archive.open(member) as file:
                        while file.read(_CHUNK):
                            pass
    except ZIP_DAMAGE as error:
        raise UserError(
            f"'{path}' is damaged ({str(error)[:80] or type(error).__name__}): its bytes are not those that were "
            f"written; {advice}"
        ) from None
    return all(member.CRC for member in members)


def _require_all_entries(path: str | Path, found: int) -> None:
    """Raise BadZipFile unless a zip archive's end record counts the members found in its directory.

    zipfile does not compare them; a damaged length in the directory hides the entries after it.
    """
    with open(path, "rb") as file:
        file.seek(-_END.size, os.SEEK_END)
        signature, count, comment = _END.unpack(file.read(_END.size))
    if signature == b"PK\x05\x06" and not comment and count not in (found, 0xFFFF):
        raise zipfile.BadZipFile(f"its directory lists {found} of {count} members")


def require_regular(path: str | Path) -> int:
    """As `require_regular_file`, with UserError for a missing file, too."""
    try:
        return require_regular_file(path)
    except FileNotFoundError as error:
        raise UserError(f"cannot read '{path}': {error.strerror}") from None


def read_json(path: str | Path, largest: int) -> Any:
    """The content of a JSON file of at most ``largest`` bytes.

    Raises:
        UserError: when it cannot be read, is larger, is not JSON, is nested too deeply, names an entry twice (programs
            differ in which of them they read), or contains NaN, infinity or a number beyond all floats.
    """
    if require_regular(path) > largest:
        raise UserError(f"'{path}' is larger than {largest} bytes; it is refused")
    try:
        text = Path(path).read_text(encoding="utf-8")
        return json.loads(text, parse_constant=_no_number, parse_float=_finite, object_pairs_hook=_each_once)
    except RecursionError:
        raise UserError(f"'{path}' is nested too deep; it is refused") from None
    except (OSError, ValueError) as error:  # ValueError: bad JSON, bad text, numbers of thousands of digits
        raise UserError(f"'{path}' is not readable JSON: {error}") from None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{name[:60]!r} is given twice")
        values[name] = value
    return values


def _finite(word: str) -> float:
    value = float(word)
    if math.isinf(value):
        raise ValueError(f"{word[:60]} is too large a number")
    return value


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def _sync(path: Path) -> None:
    """Flush a file or a folder entry to disk, if the file system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_writable(folder: Path, flag: str) -> None:
    """Raise UserError, naming ``flag``, when ``folder`` cannot be created or written to. Leaves no files behind."""
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(f"{flag} {folder}: cannot be written to ({error.strerror}); name another folder") from None


def require_writable(path: str | Path) -> None:
    """Raise UserError if `path` is not writable; called before a long computation."""
    path = Path(path).absolute()
    folder = next(parent for parent in path.parents if parent.exists())
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"cannot write {path}; give --output a file name in a folder you can write to")
