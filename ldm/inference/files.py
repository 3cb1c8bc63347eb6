"""Sample files: a model and its options to images on disk, by one process or by several, resumable."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.cli import pick_device
from ldm.errors import UserError
from ldm.files import file_digest
from ldm.inference.decode import supported_precision
from ldm.inference.generate import batch_count, checked_condition, draw_samples, sample_batches
from ldm.inference.load import load_model
from ldm.inference.options import SamplingOptions
from ldm.inference.request import SamplingRequest, check_count
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
from ldm.samples.writer import PLACES
from ldm.shards import WHOLE, Shard, merge_when_complete

logger = logging.getLogger(__name__)

SHOWN = 100  # images of a picture


def run_request(request: SamplingRequest) -> bool:
    """Do what `SamplingRequest.run` says."""
    device = pick_device(request.device)
    model = (request.config, request.checkpoint, request.count, request.options)
    given: dict[str, Any] = {"classes": request.classes, "prompts": request.prompts, "device": device}
    given |= {"ema": request.ema, "guide": request.guide}
    if request.output.suffix == ".png":
        save_grid(sample_set(*model, **given).images, request.output, columns=request.columns)
        return True
    complete = write_samples(request.output, *model, **given, shard=request.shard)
    if complete and request.picture is not None:
        save_grid(first_images(request.output, SHOWN), request.picture, columns=10)
    return complete


def sample_set(
    config: str | Path,
    checkpoint: str | Path,
    count: int,
    options: SamplingOptions,
    *,
    classes: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
    device: torch.device,
    ema: bool = True,
    guide: str | Path | None = None,
) -> SampleSet:
    """Load a model and draw a sample set, with labels or ``meta["captions"]``, and with its provenance in ``meta``.

    Captions and labels are those of `draw_samples`. Raises UserError.
    """
    check_count(count)
    options = settled(options, device)
    model, weaker = load_model(config, checkpoint, device, ema), load_guide(config, guide, device, ema)
    samples = draw_samples(model, count, options, classes, prompts, weaker)
    meta = provenance(config, checkpoint, options, device, ema, guide)
    return SampleSet(samples.images, samples.labels, {**meta, **samples.meta})


def write_samples(
    output: str | Path,
    config: str | Path,
    checkpoint: str | Path,
    count: int,
    options: SamplingOptions,
    *,
    classes: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
    device: torch.device,
    ema: bool = True,
    guide: str | Path | None = None,
    shard: Shard = WHOLE,
) -> bool:
    """Write the sample set of `sample_set` to a `.pt` file, with one batch in memory at a time.

    A stopped run resumes when it is called again with the same arguments, and gives the same file as an uninterrupted
    run. With a ``shard`` only its batches are drawn, into a file beside ``output``; the process that finishes last
    merges the parts, and the file is that of one process. Returns whether ``output`` is complete.
    Raises UserError, also for an unfinished ``output`` of other arguments.
    """
    check_count(count)
    output = Path(output)
    parts = [output] if shard.whole else needed_parts(shard, output, count, options)
    if not shard.whole and options.seed is None:
        raise UserError("several processes need one seed; give --seed, such as --seed 0")
    model, weaker = load_model(config, checkpoint, device, ema), load_guide(config, guide, device, ema)
    condition = checked_condition(model, count, options, classes, prompts)
    options = settled(options, device, unfinished_meta(output).get("seed"))
    labels = condition if isinstance(condition, Tensor) else None
    meta = provenance(config, checkpoint, options, device, ema, guide)
    if prompts is not None:
        meta["captions"] = condition
    batches = shard.part(batch_count(count, options))
    rows = range(batches.start * options.batch_size, min(count, batches.stop * options.batch_size))
    own = output if shard.whole else shard.files(output)[shard.index]
    part_labels = None if labels is None else labels[rows.start : rows.stop]
    part_meta = meta if shard.whole else {**meta, "part": f"{shard.index + 1}/{shard.count}"}
    if len(rows) and (shard.whole or not _is_finished(own, len(rows), part_meta)):
        with SampleWriter(own, len(rows), part_labels, part_meta) as writer:
            if writer.done:
                logger.info("%s: %d of %d images are there from a run that was stopped", own, writer.done, len(rows))
            left = range(batches.start + batch_count(writer.done, options), batches.stop)
            for images in sample_batches(model, count, options, condition, left, shard.first, weaker):
                writer.write(images)
            writer.finish()
    if shard.whole:
        return True

    def merge(files: Sequence[Path]) -> None:
        with SampleWriter(output, count, labels, meta) as writer:
            if writer.done:  # a merge that was stopped; reading is cheap, so it starts again
                writer.discard()
                merge(files)
                return
            for file in files:
                # not by a reader that guesses the range of pixel values: a part may hold only bright images
                for images in torch.load(file, weights_only=True, mmap=True)[IMAGE_KEY].split(options.batch_size):
                    writer.write(images)
            writer.finish()

    return merge_when_complete(output, parts, merge)


def needed_parts(shard: Shard, output: Path, count: int, options: SamplingOptions) -> list[Path]:
    """The files of the parts that have images: with fewer batches than processes, some have none."""
    total = batch_count(count, options)
    if total < shard.count:
        logger.warning(
            "%d images in batches of %d are %d batches for %d processes; a smaller --batch_size gives all of them work",
            count, options.batch_size, total, shard.count,
        )  # fmt: skip
    sizes = [len(Shard(index, shard.count).part(total)) for index in range(shard.count)]
    return [file for file, size in zip(shard.files(output), sizes, strict=True) if size]


def _is_finished(path: Path, count: int, meta: dict[str, Any]) -> bool:
    """Whether an earlier process wrote this part. Raises UserError for a part of other settings."""
    if not path.exists() or unfinished_folder(path).exists():
        return False
    file = SampleFile.open(path)
    there = dict(file.meta or {})
    changed = sorted(key for key in {*there, *meta} - {*PLACES} if there.get(key) != meta.get(key))
    if changed or file.count != count:
        raise UserError(f"{path}: is of a run with other settings ({', '.join(changed) or 'other count'}); remove it")
    return True


def load_guide(config: str | Path, guide: str | Path | None, device: torch.device, ema: bool) -> Any:
    """The weaker model of guidance, of the same configuration; None without one."""
    return None if guide is None else load_model(config, guide, device, ema)


def settled(options: SamplingOptions, device: torch.device, seed: int | None = None) -> SamplingOptions:
    """Options with a precision that the device has, and a seed: their own, else ``seed``, else a new one."""
    options = replace(options, precision=supported_precision(options.precision, device))
    if options.seed is not None:
        return options
    return replace(options, seed=secrets.randbits(32) if seed is None else seed)


def provenance(
    config: str | Path,
    checkpoint: str | Path,
    options: SamplingOptions,
    device: torch.device,
    ema: bool,
    guide: str | Path | None = None,
) -> dict[str, Any]:
    """Provenance of a sample file: input files with digests, weights, options and the kind of device."""
    return {
        "config": str(config),
        "config_sha256": file_digest(config),
        "checkpoint": str(checkpoint),
        "checkpoint_sha256": file_digest(checkpoint),
        **({} if guide is None else {"guide_sha256": file_digest(guide)}),
        "ema": ema,
        "device": device.type,
        **asdict(options),
    }
