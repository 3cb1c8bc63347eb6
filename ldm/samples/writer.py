"""Writer of sample files batch by batch, with constant memory; an interrupted run can resume."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from math import prod
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.files import verify_zip, write_atomic
from ldm.samples.reader import IMAGE_KEY, LABEL_KEY, META_KEY, check_plain, checked_labels
from ldm.samples.zip_members import member_offset, write_checksums

PLACES = ("config", "checkpoint")  # paths in the metadata; their digests are compared instead
PROGRESS = "progress.pt"
OTHER_PROCESS = "another process is writing it; wait for it, or name another output"


class SampleWriter:
    """Writes ``count`` images to ``path`` in batches of any size; the file appears when all images are written.

    Until then ``<path>.unfinished/`` contains the full-size file with labels and meta, and the progress. A new writer
    with the same path, count, labels and meta resumes it: ``done`` images are already written, and ``state`` is the
    state given with the last batch. The result has the format of `ldm.samples.SampleSet.save`;
    ``torch.load(path, weights_only=True)`` reads it, and ``mmap=True`` avoids loading it into memory.

    Args:
        labels: (count,) whole numbers, or None. meta: plain values; ``config`` and ``checkpoint`` are paths and may
            differ when an unfinished file is resumed.

    Raises:
        UserError: when an unfinished file has other settings or another process writes it.
    """

    def __init__(
        self, path: str | Path, count: int, labels: Tensor | None = None, meta: Mapping[str, Any] | None = None
    ):
        self.path = Path(path)
        self.count = count
        # a copy, because a view would be stored with everything that it is a part of
        self.labels = None if labels is None else checked_labels(labels.detach().cpu(), count).clone()
        self.meta = dict(meta or {})
        check_plain(self.meta, META_KEY)
        self.folder = unfinished_folder(self.path)
        self.done = 0
        self.state: dict[str, Tensor] = {}
        self._file: IO[bytes] | None = None
        self._shape: tuple[int, ...] = ()
        self._offset = 0
        if (self.folder / PROGRESS).exists():
            self._take_up()
        elif self.folder.exists():  # the process was killed before the first batch was written, or after the last
            self._refuse_living()
            shutil.rmtree(self.folder)

    def _refuse_living(self) -> None:
        """Raise UserError when another process holds the unfinished file, of which it has not written a batch yet."""
        data = self.folder / self.path.name
        if data.is_file():
            with data.open("rb") as file:
                _lock(file, self.path)

    def __enter__(self) -> SampleWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, images: Tensor, state: Mapping[str, Tensor] | None = None) -> None:
        """Add a batch (B, C, H, W) of floats, clamped to [-1, 1]; it is on disk when this returns.

        ``state`` holds tensors needed to resume, such as the states of random number generators.
        Raises UserError for NaN (the unfinished file is deleted), too many images, another shape, and a full disk.
        """
        images = images.detach().cpu().float()
        if images.ndim != 4 or images.shape[1] not in (1, 3) or (self._shape and images.shape[1:] != self._shape):
            raise UserError(f"{self.path}: images have shape {tuple(images.shape)}; expected (N, 1 or 3, h, w), alike")
        if self.done + len(images) > self.count:
            raise UserError(f"{self.path}: {self.done + len(images)} images for a file of {self.count}")
        bad = int((~torch.isfinite(images).flatten(1).all(dim=1)).sum())
        if bad:
            self.discard()
            raise UserError(f"{bad} of {len(images)} images hold NaN or infinite values; nothing was written")
        try:
            if self._file is None:
                self._begin(tuple(images.shape[1:]))
            self._put(self._offset + self.done * self._bytes_each, images.clamp(-1, 1).contiguous())
        except OSError as error:
            kept = f"; {self.done} of {self.count} are kept in {self.folder}, type the same command to go on"
            raise UserError(
                f"{self.path}: cannot be written ({error.strerror or error}){kept if self.done else ''}"
            ) from None
        self.done += len(images)
        progress = {"done": self.done, "state": dict(state or {})}
        write_atomic(self.folder / PROGRESS, lambda temporary: torch.save(progress, temporary))

    def finish(self) -> None:
        """Store the checksums and rename the complete file to its final path. Raises UserError for missing images."""
        if self.done != self.count or self._file is None:
            raise UserError(f"{self.path}: {self.done} of {self.count} images were written")
        whole = self.folder / self.path.name
        write_checksums(whole)
        os.fsync(self._file.fileno())
        os.replace(whole, self.path)
        self.discard()

    def discard(self) -> None:
        """Delete the unfinished file."""
        self.close()
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def close(self) -> None:
        """Close the unfinished file; another writer can resume it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @property
    def _bytes_each(self) -> int:
        return 4 * prod(self._shape)

    def _begin(self, shape: tuple[int, ...]) -> None:
        """Create the full-size file with labels and meta but without images."""
        size = 4 * prod(shape) * self.count
        self.path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.path.parent).free
        if size > free:
            raise UserError(
                f"{self.path}: {self.count} images take {size / 1e9:.3g} GB, {free / 1e9:.3g} GB are free; "
                "name another folder or ask for fewer"
            )
        try:
            self.folder.mkdir()
        except FileExistsError:
            raise UserError(f"{self.path}: {OTHER_PROCESS}") from None
        self._shape = shape
        data = self.folder / self.path.name
        _write_frame(data, (self.count, *shape), self.labels, self.meta)
        self._open(data)

    def _open(self, data: Path) -> None:
        self._offset = member_offset(data, "data/0", self._bytes_each * self.count)
        self._file = data.open("r+b")
        _lock(self._file, self.path)
        if self.labels is not None and self.done == 0:
            self._put(member_offset(data, "data/1", 8 * self.count), self.labels)

    def _put(self, offset: int, values: Tensor) -> None:
        assert self._file is not None
        self._file.seek(offset)
        self._file.write(values.numpy().data.cast("B"))
        self._file.flush()
        os.fsync(self._file.fileno())

    def _take_up(self) -> None:
        data = self.folder / self.path.name
        try:
            if not data.exists():  # killed after the rename
                shutil.rmtree(self.folder)
                return
            verify_zip(self.folder / PROGRESS)
            progress = torch.load(self.folder / PROGRESS, weights_only=True)
            content = torch.load(data, weights_only=True, mmap=True)
            images, labels, meta = content[IMAGE_KEY], content.get(LABEL_KEY), content[META_KEY]
            done, state = int(progress["done"]), progress["state"]
        except Exception as error:  # a damaged file can raise any exception
            raise UserError(f"{self.folder}: is damaged; remove it and type the command again") from error
        difference = self._difference(len(images), labels, meta)
        if difference:
            raise UserError(
                f"{self.folder}: {done} of {len(images)} images of a run with other settings ({difference}); "
                "remove it, or name another output"
            )
        self.done, self.state, self._shape = done, state, tuple(images.shape[1:])
        self._open(data)

    def _difference(self, count: int, labels: Tensor | None, meta: Mapping[str, Any]) -> str:
        """The settings of the unfinished file that differ from this writer's, as text; "" for none."""
        if count != self.count:
            return f"{count} images there, {self.count} here"
        if labels is None or self.labels is None:
            if labels is not self.labels:
                return "other classes"
        elif not torch.equal(labels, self.labels):
            return "other classes"
        for key in sorted({*meta, *self.meta} - {*PLACES}):
            there, here = meta.get(key), self.meta.get(key)
            if there != here:
                short = len(str(there)) + len(str(here)) < 200
                return f"{key}: {there!r} there, {here!r} here" if short else f"other {key}"
        return ""


def unfinished_folder(path: str | Path) -> Path:
    """The folder of an unfinished sample file."""
    path = Path(path)
    return path.with_name(f"{path.name}.unfinished")


def unfinished_meta(path: str | Path) -> dict[str, Any]:
    """The metadata of an unfinished sample file; empty without one."""
    path = Path(path)
    with contextlib.suppress(Exception):  # the writer reports a missing or damaged file
        return dict(torch.load(unfinished_folder(path) / path.name, weights_only=True, mmap=True)[META_KEY])
    return {}


def _write_frame(path: Path, shape: tuple[int, ...], labels: Tensor | None, meta: dict[str, Any]) -> None:
    """Write a sample file with room for float32 images of ``shape`` and for the labels, both still empty."""
    blank = path.with_suffix(".blank")
    try:
        with blank.open("wb") as file:
            file.truncate(4 * prod(shape))  # a sparse region, which takes no disk space
        images = torch.from_file(str(blank), shared=True, size=prod(shape), dtype=torch.float32).reshape(shape)
        content: dict[str, Any] = {IMAGE_KEY: images, META_KEY: meta}
        if labels is not None:
            content[LABEL_KEY] = labels
        with torch.serialization.skip_data():
            torch.save(content, path)
    finally:
        blank.unlink(missing_ok=True)


def _lock(file: IO[bytes], path: Path) -> None:
    """Prevent other processes from writing the same file, if the system supports locks."""
    with contextlib.suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise UserError(f"{path}: {OTHER_PROCESS}") from None
        except OSError:
            pass  # a file system without locks
