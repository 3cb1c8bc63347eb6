"""Images that are made batch by batch, in one sample file: by one process or by several, resumable."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.samples import IMAGE_KEY, SampleFile, SampleSet, SampleWriter, unfinished_folder
from ldm.samples.shards import WHOLE, Shard, merge_when_complete
from ldm.samples.writer import PLACES

logger = logging.getLogger(__name__)


class ImageBatches(Protocol):
    """Images that can be made batch by batch, in any order: a batch depends on its number and not on the others."""

    @property
    def header(self) -> SampleHeader:
        """The content of the sample file besides the images."""

    @property
    def batch_size(self) -> int:
        """Images of a batch; the last batch may have fewer."""

    def batches(self, numbers: range, progress: bool = True) -> Iterator[Tensor]:
        """The images (B, C, H, W) of the batches with these numbers, counted from 0."""


def batches_of(count: int, batch_size: int) -> int:
    """Number of batches of ``count`` images."""
    return -(-count // batch_size)


def whole_set(images: ImageBatches) -> SampleSet:
    """All images in memory."""
    header = images.header
    made = torch.cat(list(images.batches(range(batches_of(header.count, images.batch_size)))))
    return SampleSet(made, header.labels, dict(header.meta))


def write_batches(output: Path, images: ImageBatches, shard: Shard = WHOLE) -> bool:
    """Write the images to a `.pt` file, with one batch in memory at a time; whether the file is complete.

    A stopped run resumes when it is called again with the same images, and gives the same file as an uninterrupted
    run. With a ``shard`` only its batches are made, into a file beside ``output``; the process that finishes last
    merges the parts, and the file is that of one process. Raises UserError, also for an unfinished file of others.
    """
    header, size = images.header, images.batch_size
    total = batches_of(header.count, size)
    if shard.whole:
        _write(output, images, header, range(total))
        return True
    if output.exists() and not header.differences(output):
        return True  # a process that starts again after the merge
    parts = header.parts(shard.count, output, size)
    own = shard.files(output)[shard.index]
    if own in parts and not is_finished(own, parts[own]):
        _write(own, images, parts[own], shard.part(total), progress=shard.first)
    return merge_when_complete(output, list(parts), lambda _: merge_parts(output, header, parts, size))


def _write(path: Path, images: ImageBatches, part: SampleHeader, numbers: range, progress: bool = True) -> None:
    """Write the batches with these numbers into a file with this header; goes on where an earlier one stopped."""
    with SampleWriter(path, part.count, part.labels, part.meta) as writer:
        if writer.done:
            logger.info("%s: %d of %d images are there from a run that was stopped", path, writer.done, part.count)
        left = range(numbers.start + batches_of(writer.done, images.batch_size), numbers.stop)
        for batch in images.batches(left, progress):
            writer.write(batch)
        writer.finish()


@dataclass(frozen=True)
class SampleHeader:
    """The content of a sample file besides its images: their number, labels (count,) or None, and the metadata."""

    count: int
    labels: Tensor | None
    meta: Mapping[str, Any]

    def parts(self, processes: int, output: Path, batch_size: int) -> dict[Path, SampleHeader]:
        """The headers of the parts that have images, by file: with fewer batches than processes, some have none."""
        total, found = batches_of(self.count, batch_size), {}
        if total < processes:
            logger.warning("%d processes share %d batches, so that some have no work", processes, total)
        for index, file in enumerate(Shard(0, processes).files(output)):
            batches = Shard(index, processes).part(total)
            start, stop = batches.start * batch_size, min(self.count, batches.stop * batch_size)
            if stop > start:
                labels = None if self.labels is None else self.labels[start:stop]
                found[file] = SampleHeader(stop - start, labels, {**self.meta, "part": f"{index + 1}/{processes}"})
        return found

    def differences(self, path: Path) -> list[str]:
        """The settings in which a sample file differs; the places of its inputs do not count."""
        file = SampleFile.open(path)
        there = dict(file.meta or {})
        changed = [key for key in {*there, *self.meta} - {*PLACES} if there.get(key) != self.meta.get(key)]
        changed += ["number of images"] if file.count != self.count else []
        same = file.labels is self.labels or (
            file.labels is not None and self.labels is not None and torch.equal(file.labels, self.labels)
        )
        return sorted([*changed, *([] if same else ["classes"])])


def is_finished(path: Path, part: SampleHeader) -> bool:
    """Whether an earlier process wrote this part. Raises UserError for a part of other settings."""
    if not path.exists() or unfinished_folder(path).exists():
        return False
    changed = part.differences(path)
    if changed:
        raise UserError(f"{path}: is of a run with other settings ({', '.join(changed)}); remove it")
    return True


def merge_parts(output: Path, header: SampleHeader, parts: Mapping[Path, SampleHeader], batch_size: int) -> None:
    """Write the images of all parts into one file. Raises UserError for a part of other settings."""
    for path, part in parts.items():
        is_finished(path, part)
    with SampleWriter(output, header.count, header.labels, header.meta) as writer:
        if not writer.done:
            for path in parts:
                # not by a reader that guesses the range of pixel values: a part may hold only bright images
                for images in torch.load(path, weights_only=True, mmap=True)[IMAGE_KEY].split(batch_size):
                    writer.write(images)
            writer.finish()
            return
        writer.discard()  # of a merge that was stopped; reading is cheap, so it starts again
    merge_parts(output, header, parts, batch_size)
