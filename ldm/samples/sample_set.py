"""The sample-file format of all commands: images, labels and generation metadata."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.files import write_atomic
from ldm.samples.reader import IMAGE_KEY, LABEL_KEY, META_KEY, SampleFile, check_plain, checked_labels

LOAD_BATCH = 64


@dataclass(frozen=True)
class SampleSet:
    """Images with optional labels and metadata, the content of a sample file.

    images: (N, C, H, W) float32 on the CPU, clamped to [-1, 1]; C is 1 or 3.
    labels: (N,) int64 or None. meta: plain values about the generation of the images (config, checkpoint digest,
    seed, sampler, steps, scale, ...). Any floating type and device is accepted and converted to this form.
    Raises UserError for NaN or infinite pixels, a wrong shape, or labels that do not match the images.
    """

    images: Tensor
    labels: Tensor | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        images = self.images.detach().cpu()
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise UserError(f"images have shape {tuple(images.shape)}; expected (N, 1 or 3, height, width)")
        if not images.is_floating_point():
            raise UserError(f"images have type {images.dtype}; expected floats in [-1, 1]")
        bad = ~torch.isfinite(images).flatten(1).all(dim=1)
        if bad.any():
            raise UserError(f"{int(bad.sum())} of {len(images)} images hold NaN or infinite values")
        object.__setattr__(self, "images", images.float().clamp(-1, 1).contiguous())
        if self.labels is not None:
            object.__setattr__(self, "labels", checked_labels(self.labels.detach().cpu(), len(images)))
        check_plain(self.meta, META_KEY)

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, index: Tensor) -> SampleSet:
        """The images at `index` (integers or a mask, (K,)), with their labels and the same meta."""
        return SampleSet(self.images[index], None if self.labels is None else self.labels[index], dict(self.meta))

    def save(self, path: str | Path) -> None:
        """Write a `.pt` dict with keys `image`, `class_label` (when there are labels) and `meta`, atomically."""
        content: dict[str, Any] = {IMAGE_KEY: self.images, META_KEY: dict(self.meta)}
        if self.labels is not None:
            content[LABEL_KEY] = self.labels
        write_atomic(Path(path), lambda temporary: torch.save(content, temporary))

    @classmethod
    def load(cls, path: str | Path, *, need_labels: bool = False) -> SampleSet:
        """Read a sample file of this or an older format.

        `.pt`: dict of `image` and optional `class_label`; images may be (N, B, C, H, W) as saved by one old script,
        (N, H, W, C), (N, H, W), uint8, or floats in [0, 1] (assumed, with a warning, without `meta` and negative
        values). `.npz`: `x` (N, H, W, C) and optional `y`, or guided-diffusion's `arr_0` and `arr_1`. No code in the
        file is executed.
        Raises UserError, one line naming the file, for another format, and for missing labels with `need_labels`.
        """
        file = SampleFile.open(path, need_labels=need_labels)
        images = torch.empty(file.count, *file.shape)
        start = 0
        for block, _ in file.batches(LOAD_BATCH):
            images[start : start + len(block)] = block
            start += len(block)
        try:
            return cls(images, file.labels, file.meta or {})
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


def iter_batches(
    path: str | Path, batch_size: int, *, need_labels: bool = False
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Iterate over a sample file in order without loading it into memory: (images, labels) or (images, None).

    images: (B, C, H, W) float32 in [-1, 1], as from `SampleSet.load`; labels: (B,) int64. The same formats are
    accepted, and the whole file is checked in one pass before this returns.
    Raises UserError, one line naming the file, as `SampleSet.load` does, and for a batch size below 1.
    """
    return SampleFile.open(path, need_labels=need_labels).batches(batch_size)


def first_images(path: str | Path, count: int) -> Tensor:
    """The first ``count`` images (B, C, H, W) of a sample file, or all if it has fewer. Raises UserError."""
    file = SampleFile.open(path)
    return file.converter(checked=False)(next(file.blocks(count)))
