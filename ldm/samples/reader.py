"""Reader for sample files of all formats, in blocks, so that a file may be larger than memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.files import verify_zip
from ldm.samples.array_files import NpzArchive, is_mapped, load_torch, npz_names, read_exactly, require_stored
from ldm.samples.pixel_range import BYTES, SIGNED, find_range, require_levels

logger = logging.getLogger(__name__)

IMAGE_KEY, LABEL_KEY, META_KEY = "image", "class_label", "meta"
CLASS_NAMES_KEY = "class_names"

MAX_CLASSES = 2**20  # larger values are no classes
SCAN_BYTES = 2**24
# The pages of a mapped file count as memory of the process until it is unmapped, so the file is remapped after this
# number of bytes.
REMAP_BYTES = 2**26


@dataclass(frozen=True)
class SampleFile:
    """An open sample file: its metadata and labels; images are read on demand.

    count images of shape (C, H, W); labels (count,) int64 or None; meta is the file's metadata, None for a file of an
    older format. ``blocks(size)`` iterates over the stored images in order, (size, C, H, W) of ``dtype``.
    """

    path: Path
    count: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    labels: Tensor | None
    meta: dict[str, Any] | None
    blocks: Callable[[int], Iterator[Tensor]]

    @classmethod
    def open(cls, path: str | Path, *, need_labels: bool = False) -> SampleFile:
        """Open a sample file; see `ldm.samples.SampleSet.load` for the formats.

        No code in the file is executed. Raises UserError, one line naming the file, for another format, and for
        missing labels with ``need_labels``.
        """
        path = Path(path)
        try:
            found = _open_npz(path) if path.suffix == ".npz" else _open_pt(path)
            if found.dtype != torch.uint8 and not found.dtype.is_floating_point:
                raise UserError(f"images have type {found.dtype}; expected floats in [-1, 1] or uint8")
            if found.labels is None and need_labels:
                raise UserError(f"no labels (key {LABEL_KEY!r}); sample from a class-conditional model to get them")
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        return found

    def converter(self, *, checked: bool = True) -> Callable[[Tensor], Tensor]:
        """A function that converts stored images to float32 in [-1, 1]; reads the whole file, see `verify`.

        `ldm.samples.pixel_range` defines the range. Without ``checked``, a file with metadata is assumed to be in
        [-1, 1] and is not read. Raises UserError for NaN, infinite values, and ranges other than [-1, 1] and [0, 1].
        """
        if checked:
            self.verify()
        if self.dtype == torch.uint8:
            if checked:
                require_levels(self.blocks(max(1, SCAN_BYTES // prod(self.shape))), str(self.path))
            return BYTES.to_signed
        if not checked and self.meta is not None:
            return SIGNED.to_signed
        blocks = self.blocks(max(1, SCAN_BYTES // (4 * prod(self.shape))))
        return find_range(blocks, str(self.path), is_signed=self.meta is not None).to_signed

    def verify(self) -> None:
        """Compare the file's content with its checksums. Raises UserError for a damaged file.

        Files from older versions, and files from torch before 1.6, have none; one log line says so.
        """
        if not is_mapped(self.path) or not verify_zip(self.path, "copy it again, or write it again"):
            logger.warning("%s: was written without checksums, so damage to it would not be noticed", self.path)

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Images (B, C, H, W) float32 in [-1, 1] with their labels (B,) or None, in the file's order.

        The whole file is checked before this returns (see `converter`). Raises UserError.
        """
        if batch_size < 1:
            raise UserError(f"batch size {batch_size} must be at least 1")
        convert = self.converter()

        def go() -> Iterator[tuple[Tensor, Tensor | None]]:
            start = 0
            for block in self.blocks(batch_size):
                stop = start + len(block)
                yield convert(block).contiguous(), None if self.labels is None else self.labels[start:stop]
                start = stop

        return go()


def class_names_in(meta: Mapping[str, Any], where: object) -> tuple[str, ...]:
    """The names of the classes 0, 1, ... in a sample file's metadata, () without. Raises UserError for other values."""
    names = meta.get(CLASS_NAMES_KEY)
    if names is not None and not (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)):
        raise UserError(f"{where}: {CLASS_NAMES_KEY!r} is no list of names")
    return tuple(names or ())


def checked_labels(labels: Tensor, count: int) -> Tensor:
    """Labels as int64 (count,). Raises UserError for invalid class numbers or another number of labels."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(f"labels have type {labels.dtype}; expected whole numbers (int64)")
    if labels.shape != (count,):
        raise UserError(f"{labels.numel()} labels for {count} images; expected one label an image")
    if count and int(labels.min()) < 0:
        raise UserError(f"labels go down to {int(labels.min())}; expected class numbers from 0")
    if count and int(labels.max()) >= MAX_CLASSES:
        raise UserError(f"labels go up to {int(labels.max())}; expected class numbers below {MAX_CLASSES}")
    return labels.to(torch.int64).contiguous()


def check_plain(value: Any, where: str) -> None:
    """Raise UserError, naming ``where``, for a value that a sample file must not carry."""
    if isinstance(value, dict):
        for key, inner in value.items():
            check_plain(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            check_plain(inner, where)
    elif not isinstance(value, str | int | float | bool | None):
        raise UserError(f"{where} is a {type(value).__name__}; sample files carry plain values only")


def _open_pt(path: Path) -> SampleFile:
    content = _load_pt(path)
    if not isinstance(content, dict) or IMAGE_KEY not in content:
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise UserError(
            f"no {IMAGE_KEY!r} in this file (it holds {found}); expected a sample file with "
            f"{IMAGE_KEY!r} and {LABEL_KEY!r}"
        )
    meta = content.get(META_KEY)
    if meta is not None and not isinstance(meta, dict):
        raise UserError(f"{META_KEY!r} is a {type(meta).__name__}; expected a dict of plain values")
    images = _tensor(content[IMAGE_KEY], IMAGE_KEY)
    require_stored(images, IMAGE_KEY)
    count, stored = _layout(images.shape)
    labels = content.get(LABEL_KEY)
    dtype = images.dtype
    whole = None if is_mapped(path) else images.reshape(count, *stored)

    def blocks(size: int) -> Iterator[Tensor]:
        mapped, handed = whole, 0
        for start in range(0, count, size):
            if mapped is None or (whole is None and handed > REMAP_BYTES):
                mapped, handed = None, 0  # unmap the file before mapping it again
                mapped = _again(path, count, stored)
            block = mapped[start : start + size]
            handed += block.numel() * block.element_size()
            yield _to_nchw(block)

    return _made(path, count, stored, dtype, labels, meta, blocks)


def _load_pt(path: Path) -> Any:
    try:
        return load_torch(path)
    except FileNotFoundError:
        raise UserError("no such file") from None


def _again(path: Path, count: int, stored: tuple[int, ...]) -> Tensor:
    """The images (count, *stored) of a file opened before, memory-mapped again."""
    images = _tensor(_load_pt(path)[IMAGE_KEY], IMAGE_KEY)
    if _layout(images.shape) != (count, stored):
        raise UserError(f"{path}: was changed while it was read")
    return images.reshape(count, *stored)


def _open_npz(path: Path) -> SampleFile:
    try:
        archive = NpzArchive(path)
    except FileNotFoundError:
        raise UserError("no such file") from None
    name, label_name = npz_names(archive)
    labels = None if label_name is None else archive.array(label_name)
    header = archive.headers[name]
    count, stored = _layout(header.shape)
    whole = torch.from_numpy(archive.array(name)).reshape(count, *stored) if header.by_columns else None

    def blocks(size: int) -> Iterator[Tensor]:
        if whole is not None:
            yield from map(_to_nchw, whole.split(size))
            return
        with archive.values(name) as member:
            for start in range(0, count, size):
                shape = (min(size, count - start), *stored)
                array = np.frombuffer(
                    read_exactly(member, prod(shape) * header.dtype.itemsize, path), header.dtype
                ).reshape(shape)
                yield _to_nchw(torch.from_numpy(array.astype(header.dtype.newbyteorder("="))))
            read_exactly(member, 0, path)

    dtype = _tensor(np.empty(0, header.dtype.newbyteorder("=")), name).dtype
    return _made(path, count, stored, dtype, labels, None, blocks)


def _made(
    path: Path,
    count: int,
    stored: tuple[int, ...],
    dtype: torch.dtype,
    labels: Any,
    meta: dict[str, Any] | None,
    blocks: Callable[[int], Iterator[Tensor]],
) -> SampleFile:
    shape = tuple(_to_nchw(torch.empty(1, *stored, device="meta")).shape[1:])
    if labels is not None:
        labels = checked_labels(_tensor(labels, LABEL_KEY).flatten().clone(), count)  # a copy allows unmapping
    return SampleFile(path, count, shape, dtype, labels, meta, blocks)


def _tensor(value: Any, key: str) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{key!r} is a {type(value).__name__}; expected a tensor") from error


def _layout(shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Number of images and the stored shape of one, of (N, B, C, H, W), (N, C, H, W), (N, H, W, C) or (N, H, W)."""
    if len(shape) == 5:
        count, stored = shape[0] * shape[1], tuple(shape[2:])
    else:
        count, stored = shape[0] if shape else 0, tuple(shape[1:])
    if len(stored) not in (2, 3) or (len(stored) == 3 and stored[0] not in (1, 3) and stored[2] not in (1, 3)):
        raise UserError(f"images have shape {tuple(shape)}; expected (N, 1 or 3, height, width)")
    if not count or not prod(stored):
        raise UserError("holds no images")
    return count, stored


def _to_nchw(images: Tensor) -> Tensor:
    if images.ndim == 3:
        return images.unsqueeze(1)
    return images if images.shape[1] in (1, 3) else images.permute(0, 3, 1, 2)
