"""Sample files of every form as they lie on disk, read in blocks, so that a file may be larger than the memory."""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from ldm.errors import UserError

logger = logging.getLogger(__name__)

IMAGE_KEY, LABEL_KEY, META_KEY = "image", "class_label", "meta"

# Decoders overshoot [-1, 1] a little and older samplers saved what came out. More than this share of values beyond
# this bound is another scale (0-255, standardised), which clamping would silently turn into black and white.
OVERSHOOT_BOUND, OVERSHOOT_SHARE = 1.5, 0.01

SCAN_BYTES = 2**24
# A mapped file's pages count as the process's memory for as long as it is mapped: after this much it is mapped anew.
REMAP_BYTES = 2**26


@dataclass(frozen=True)
class SampleFile:
    """A sample file that has been opened: what is in it, without the images themselves.

    count images of shape (C, H, W); labels (count,) int64 or None; meta the plain values of the file, None for a
    file of an older form. ``blocks(size)`` goes through the stored images in order, (size, C, H, W) of ``dtype``.
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
        """Open a sample file; see `ldm.samples.SampleSet.load` for the forms.

        Nothing in the file is executed. Raises UserError, one line naming the file, when it is none of the forms, or
        has no labels and ``need_labels``.
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
        """A function that brings stored images to float32 in [-1, 1]; goes once through the file to find it.

        uint8 is 0 to 255; floats lie in [-1, 1], or in [0, 1] in a file of an older form without a negative value.
        Without ``checked`` a file that is not of an older form is trusted. Raises UserError for NaN, infinite values,
        and scales that cannot be told apart from a mistake.
        """
        if self.dtype == torch.uint8:
            return lambda images: images.float() / 127.5 - 1
        if not checked and self.meta is not None:
            return lambda images: images.float().clamp(-1, 1)
        low, high = float("inf"), float("-inf")
        bad = beyond = 0
        for block in self.blocks(max(1, SCAN_BYTES // (4 * prod(self.shape)))):
            least, most = (float(bound) for bound in torch.aminmax(block))
            if least >= -OVERSHOOT_BOUND and most <= OVERSHOOT_BOUND:  # false for NaN
                low, high = min(low, least), max(high, most)
                continue
            finite = torch.isfinite(block)
            bad += int((~finite.flatten(1).all(dim=1)).sum())
            beyond += int((block.abs() > OVERSHOOT_BOUND).sum())
            if finite.any():
                low, high = min(low, float(block[finite].min())), max(high, float(block[finite].max()))
        if bad:
            raise UserError(f"{self.path}: {bad} of {self.count} images hold NaN or infinite values")
        if beyond > OVERSHOOT_SHARE * self.count * prod(self.shape):
            raise UserError(
                f"{self.path}: pixel values lie in [{low:.3g}, {high:.3g}]; expected [-1, 1], [0, 1] or uint8"
            )
        if self.meta is None and low >= 0:
            logger.warning(
                "%s: no negative pixel and no %r: read as an older file with pixels in [0, 1]", self.path, META_KEY
            )
            return lambda images: (images.float() * 2 - 1).clamp(-1, 1)
        return lambda images: images.float().clamp(-1, 1)

    def batches(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Images (B, C, H, W) float32 in [-1, 1] with their labels (B,) or None, in the file's order.

        The file is checked as a whole before this returns (see `converter`). Raises UserError.
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


def checked_labels(labels: Tensor, count: int) -> Tensor:
    """Labels as int64 (count,). Raises UserError when they are no class numbers or not as many."""
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(f"labels have type {labels.dtype}; expected whole numbers (int64)")
    if labels.shape != (count,):
        raise UserError(f"{labels.numel()} labels for {count} images; expected one label an image")
    if count and int(labels.min()) < 0:
        raise UserError(f"labels go down to {int(labels.min())}; expected class numbers from 0")
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
    count, stored = _layout(images.shape)
    labels = content.get(LABEL_KEY)
    dtype = images.dtype
    whole = None if _is_mapped(path) else images.reshape(count, *stored)

    def blocks(size: int) -> Iterator[Tensor]:
        mapped, handed = whole, 0
        for start in range(0, count, size):
            if mapped is None or (whole is None and handed > REMAP_BYTES):
                mapped, handed = None, 0  # the earlier mapping goes before the next one comes
                mapped = _again(path, count, stored)
            block = mapped[start : start + size]
            handed += block.numel() * block.element_size()
            yield _to_nchw(block)

    return _made(path, count, stored, dtype, labels, meta, blocks)


def _load_pt(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_mapped(path))
    except FileNotFoundError:
        raise UserError("no such file") from None
    except Exception as error:  # bytes that are no such file make the reader fail in any way
        raise UserError(
            "not a readable sample file; expected a torch file that holds only tensors and plain values"
        ) from error


def _again(path: Path, count: int, stored: tuple[int, ...]) -> Tensor:
    """The images (count, *stored) of a file that was opened before, mapped anew."""
    images = _tensor(_load_pt(path)[IMAGE_KEY], IMAGE_KEY)
    if _layout(images.shape) != (count, stored):
        raise UserError(f"{path}: was changed while it was read")
    return images.reshape(count, *stored)


def _is_mapped(path: Path) -> bool:
    """Whether a file can be mapped into memory; files of torch before 1.6 are no zip archives and cannot."""
    return zipfile.is_zipfile(path)


def _open_npz(path: Path) -> SampleFile:
    try:
        with np.load(path, allow_pickle=False) as content:
            names = list(content.files)
            labels = content["y"] if "y" in names else None
        if "x" not in names:
            raise UserError(f"no 'x' in this file (it holds {sorted(names)}); expected 'x' (N, H, W, C) and 'y'")
        with zipfile.ZipFile(path) as archive, archive.open("x.npy") as member:
            shape, by_columns, dtype = _npy_header(member)
        if by_columns:
            with np.load(path, allow_pickle=False) as content:
                whole = np.ascontiguousarray(content["x"])
    except FileNotFoundError:
        raise UserError("no such file") from None
    except UserError:
        raise
    except Exception as error:
        raise UserError("not a readable .npz file of plain arrays") from error
    count, stored = _layout(shape)

    def blocks(size: int) -> Iterator[Tensor]:
        if by_columns:
            for part in torch.from_numpy(whole.reshape(count, *stored)).split(size):
                yield _to_nchw(part)
            return
        with zipfile.ZipFile(path) as archive, archive.open("x.npy") as member:
            _npy_header(member)
            for start in range(0, count, size):
                shape = (min(size, count - start), *stored)
                array = np.frombuffer(_read(member, prod(shape) * dtype.itemsize, path), dtype).reshape(shape)
                yield _to_nchw(torch.from_numpy(array.astype(dtype.newbyteorder("="))))
            _read(member, 0, path)

    return _made(path, count, stored, _tensor(np.empty(0, dtype.newbyteorder("=")), "x").dtype, labels, None, blocks)


def _npy_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns come first, and type of the array whose .npy form begins here."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(member)
    if dtype.hasobject:
        raise UserError("'x' holds objects; expected numbers")
    return shape, by_columns, dtype


def _read(member: IO[bytes], size: int, path: Path) -> bytes:
    """The next bytes of an archive's member; none asked for at its end is when its checksum is compared."""
    try:
        data = member.read(size or 1)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise UserError(f"{path}: is damaged ({error})") from None
    if size and len(data) < size:
        raise UserError(f"{path}: is cut short")
    return data


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
        labels = checked_labels(_tensor(labels, LABEL_KEY).flatten().clone(), count)  # not the mapped file's
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
