"""Sample files: a model and its options to images on disk, by one process or by several, resumable."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.cli import pick_device
from ldm.errors import UserError
from ldm.files import file_digest
from ldm.inference.class_names import declared_class_names, named_labels
from ldm.inference.decode import supported_precision
from ldm.inference.generate import batch_count, checked_condition, sample_batches
from ldm.inference.load import load_model
from ldm.inference.options import SamplingOptions
from ldm.inference.request import ModelSource, SamplePlan, SamplingRequest
from ldm.models.diffusion.latent_denoiser import LatentDenoiser
from ldm.samples import (
    IMAGE_KEY,
    SampleFile,
    SampleSet,
    SampleWriter,
    first_images,
    save_grid,
    unfinished_folder,
    unfinished_meta,
)
from ldm.samples.shards import WHOLE, Shard, merge_when_complete
from ldm.samples.writer import PLACES

logger = logging.getLogger(__name__)

SHOWN = 100  # images in the grid of ``--picture``


def run_request(request: SamplingRequest) -> bool:
    """Draw and write the images of a request; whether the output is complete (else other processes still draw)."""
    source, plan, device = request.source, request.plan, pick_device(request.device)
    if request.output.suffix == ".png":
        save_grid(sample_set(source, plan, device).images, request.output, columns=request.columns)
        return True
    complete = write_samples(request.output, source, plan, device, request.shard)
    if complete and request.picture is not None:
        save_grid(first_images(request.output, SHOWN), request.picture, columns=10)
    return complete


def sample_set(source: ModelSource, plan: SamplePlan, device: torch.device) -> SampleSet:
    """Load a model and draw a sample set, with labels or ``meta["captions"]``, and with its provenance in ``meta``.

    Captions and labels are those of `draw_samples`. Raises UserError.
    """
    drawing = Drawing.prepare(source, plan, device)
    images = torch.cat(list(drawing.batches(range(drawing.batch_count))))
    return SampleSet(images, drawing.header.labels, dict(drawing.header.meta))


def write_samples(
    output: str | Path, source: ModelSource, plan: SamplePlan, device: torch.device, shard: Shard = WHOLE
) -> bool:
    """Write the sample set of `sample_set` to a `.pt` file, with one batch in memory at a time.

    A stopped run resumes when it is called again with the same arguments, and gives the same file as an uninterrupted
    run. With a ``shard`` only its batches are drawn, into a file beside ``output``; the process that finishes last
    merges the parts, and the file is that of one process. Returns whether ``output`` is complete.
    Raises UserError, also for an unfinished ``output`` of other arguments.
    """
    output = Path(output)
    if not shard.whole and plan.options.seed is None:
        raise UserError("several processes need one seed; give --seed, such as --seed 0")
    drawing = Drawing.prepare(source, plan, device, unfinished_meta(output).get("seed"))
    header, total = drawing.header, drawing.batch_count
    if shard.whole:
        drawing.write(output, header, range(total))
        return True
    if output.exists() and not header.differences(output):
        return True  # a process that starts again after the merge
    parts = header.parts(shard.count, output, drawing.options)
    own = shard.files(output)[shard.index]
    if own in parts and not is_finished(own, parts[own]):
        drawing.write(own, parts[own], shard.part(total), progress=shard.first)
    size = drawing.options.batch_size
    return merge_when_complete(output, list(parts), lambda _: merge_parts(output, header, parts, size))


@dataclass(frozen=True)
class Drawing:
    """A loaded model that is about to draw: its options with their seed, the condition of every image, the header."""

    model: LatentDenoiser
    guide: LatentDenoiser | None
    options: SamplingOptions
    condition: Tensor | list[str] | None
    header: SampleHeader

    @classmethod
    def prepare(cls, source: ModelSource, plan: SamplePlan, device: torch.device, seed: int | None = None) -> Drawing:
        """Load the model and check the plan. ``seed``: of options without one, a new one if None. Raises UserError."""
        model = load_model(source.config, source.checkpoint, device, source.ema, source.settings)
        guide = None
        if source.guide is not None:
            guide = load_model(source.config, source.guide, device, source.ema, source.settings)
        condition = checked_condition(model, plan.count, plan.options, plan.classes, plan.prompts)
        options = with_seed_and_precision(plan.options, device, seed)
        labels = condition if isinstance(condition, Tensor) else None
        names = plan.class_names
        if names is None:
            names = declared_class_names(source.config, source.settings)
        meta = provenance(source, options, device) | named_labels(labels, names)
        if plan.prompts is not None:
            meta["captions"] = condition
        return cls(model, guide, options, condition, SampleHeader(plan.count, labels, meta))

    @property
    def batch_count(self) -> int:
        """Number of batches of all images."""
        return batch_count(self.header.count, self.options)

    def batches(self, numbers: range, progress: bool = True) -> Iterator[Tensor]:
        """The images of the batches with these numbers."""
        count = self.header.count
        yield from sample_batches(self.model, count, self.options, self.condition, numbers, progress, self.guide)

    def write(self, path: Path, part: SampleHeader, numbers: range, progress: bool = True) -> None:
        """Write the batches with these numbers into a file with this header; goes on where an earlier one stopped."""
        with SampleWriter(path, part.count, part.labels, part.meta) as writer:
            if writer.done:
                logger.info("%s: %d of %d images are there from a run that was stopped", path, writer.done, part.count)
            left = range(numbers.start + batch_count(writer.done, self.options), numbers.stop)
            for images in self.batches(left, progress):
                writer.write(images)
            writer.finish()


@dataclass(frozen=True)
class SampleHeader:
    """The content of a sample file besides its images: their number, labels (count,) or None, and the metadata."""

    count: int
    labels: Tensor | None
    meta: Mapping[str, Any]

    def parts(self, processes: int, output: Path, options: SamplingOptions) -> dict[Path, SampleHeader]:
        """The headers of the parts that have images, by file: with fewer batches than processes, some have none."""
        total, found = batch_count(self.count, options), {}
        if total < processes:
            logger.warning("%d processes share %d batches; a smaller --batch_size gives all work", processes, total)
        for index, file in enumerate(Shard(0, processes).files(output)):
            batches = Shard(index, processes).part(total)
            start, stop = batches.start * options.batch_size, min(self.count, batches.stop * options.batch_size)
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


def with_seed_and_precision(options: SamplingOptions, device: torch.device, seed: int | None = None) -> SamplingOptions:
    """Options with a precision that the device has, and a seed: their own, else ``seed``, else a new one."""
    options = replace(options, precision=supported_precision(options.precision, device))
    if options.seed is not None:
        return options
    return replace(options, seed=secrets.randbits(32) if seed is None else seed)


def provenance(source: ModelSource, options: SamplingOptions, device: torch.device) -> dict[str, Any]:
    """Provenance of a sample file: input files with digests, settings, weights, options and the kind of device."""
    return {
        "config": str(source.config),
        "config_sha256": file_digest(source.config),
        "checkpoint": str(source.checkpoint),
        "checkpoint_sha256": file_digest(source.checkpoint),
        **({"settings": list(source.settings)} if source.settings else {}),
        **({} if source.guide is None else {"guide_sha256": file_digest(source.guide)}),
        "ema": source.ema,
        "device": device.type,
        **asdict(options),
    }
