"""Fetching the Parquet files of a data set from the Hugging Face hub, with nothing but the standard library."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.parse import quote
from urllib.request import Request, urlopen

from tqdm import tqdm

from ldm.errors import UserError

log = logging.getLogger(__name__)

ENDPOINT_VARIABLE = "HF_ENDPOINT"  # a mirror, as the hub's own client spells it
ENDPOINT = "https://huggingface.co"
TIMEOUT = 60.0  # seconds without a byte
BLOCK = 1 << 20


class HubFile(NamedTuple):
    """A file of a data set: path in the repository, bytes, SHA-256 (hex) where the hub states it."""

    path: str
    size: int
    sha256: str | None


def fetch_parquet(repository: str, folder: Path) -> list[Path]:
    """Download ``data/*.parquet`` of a data set into ``folder`` and return the files, sorted.

    What is complete is left alone, what is half there goes on where it stopped. Size and checksum are verified.

    Raises:
        UserError: when the hub cannot be reached, or sends something else than it announced.
    """
    files = listing(repository)
    paths = []
    for file in files:
        target = folder / file.path
        if not (target.is_file() and target.stat().st_size == file.size):
            _fetch(repository, file, target)
        paths.append(target)
    log.info("%d files of %s are in %s", len(paths), repository, folder)
    return sorted(paths)


def listing(repository: str) -> list[HubFile]:
    """Return the Parquet files in the ``data`` folder of a data set."""
    url = f"{endpoint()}/api/datasets/{repository}/tree/main/data"
    try:
        with _open(repository, Request(url)) as reply:
            entries = json.loads(reply.read())
        found = [
            HubFile(entry["path"], int(entry["size"]), (entry.get("lfs") or {}).get("oid"))
            for entry in entries
            if entry["type"] == "file" and entry["path"].endswith(".parquet")
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{url} did not answer with a list of files ({error}); fetch the files by hand") from None
    if not found:
        raise UserError(f"the data set {repository} has no Parquet files in its data folder; fetch them by hand")
    if any(".." in Path(file.path).parts or Path(file.path).is_absolute() for file in found):
        raise UserError(f"the data set {repository} names a file outside of it; fetch the files by hand")
    return sorted(found)


def endpoint() -> str:
    """Return the hub's address: ``$HF_ENDPOINT`` or the public one."""
    return (os.environ.get(ENDPOINT_VARIABLE) or ENDPOINT).rstrip("/")


def _open(repository: str, request: Request) -> Any:
    try:
        return urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        raise UserError(f"{request.full_url} answered {error.code} {error.reason}; fetch the files by hand") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise UserError(
            f"{endpoint()} cannot be reached ({reason}); fetch the Parquet files of the data set {repository} on "
            "another machine and type --from FOLDER"
        ) from None


def _fetch(repository: str, file: HubFile, target: Path) -> None:
    """Download one file to ``target.part`` and rename it when it is whole."""
    part = target.with_name(target.name + ".part")
    target.parent.mkdir(parents=True, exist_ok=True)
    start = part.stat().st_size if part.is_file() else 0
    if start >= file.size:
        part.unlink(missing_ok=True)
        start = 0
    url = f"{endpoint()}/datasets/{repository}/resolve/main/{quote(file.path)}"
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    with _open(repository, request) as reply:
        if start and reply.status != 206:  # the server sends everything again
            start = 0
        bar = tqdm(total=file.size, initial=start, desc=target.name, unit="B", unit_scale=True, disable=None)
        with bar, part.open("ab" if start else "wb") as stream:
            try:
                while block := reply.read(BLOCK):
                    stream.write(block)
                    bar.update(len(block))
            except OSError as error:
                raise UserError(f"{target.name} broke off ({error}); type the same again, it goes on there") from None
    if part.stat().st_size < file.size:
        raise UserError(f"{target.name} broke off after {part.stat().st_size} bytes; type the same again")
    if part.stat().st_size > file.size or (file.sha256 is not None and _sha256(part) != file.sha256):
        part.unlink()
        raise UserError(f"{target.name} is not the file that {endpoint()} announced; type the same again")
    part.replace(target)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
