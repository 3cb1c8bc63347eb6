"""Sample files: a model and its options to images on disk, by one process or by several, resumable."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
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
from ldm.inference.generate import batch_count, checked_condition, draw_samples, sample_batches
from ldm.inference.load import load_model
from ldm.inference.options import SamplingOptions
from ldm.inference.request import SamplingRequest, check_count
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
    model = (request.config, request.checkpoint, request.count, request.options)
    given: dict[str, Any] = {
        "classes": request.classes,
        "prompts": request.prompts,
        "class_names": request.class_names,
        "device": pick_device(request.device),
        "ema": request.ema,
        "guide": request.guide,
        "settings": request.settings,
    }
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
    class_names: Sequence[str] | None = None,
    device: torch.device,
    ema: bool = True,
    guide: str | Path | None = None,
    settings: Sequence[str] = (),
) -> SampleSet:
    """Load a model and draw a sample set, with labels or ``meta["captions"]``, and with its provenance in ``meta``.

    Captions and labels are those of `draw_samples`. ``class_names`` (those that the configuration declares when None)
    are stored with the labels. Raises UserError.
    """
    check_count(count)
    names = declared_class_names(config, settings) if class_names is None else class_names
    options = with_seed_and_precision(options, device)
    model = load_model(config, checkpoint, device, ema, settings)
    weaker = load_guide(config, guide, device, ema, settings)
    samples = draw_samples(model, count, options, classes, prompts, weaker)
    meta = provenance(config, checkpoint, options, device, ema, guide, settings) | named_labels(samples.labels, names)
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
    class_names: Sequence[str] | None = None,
    device: torch.device,
    ema: bool = True,
    guide: str | Path | None = None,
    settings: Sequence[str] = (),
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
    if not shard.whole and options.seed is None:
        raise UserError("several processes need one seed; give --seed, such as --seed 0")
    model = load_model(config, checkpoint, device, ema, settings)
    weaker = load_guide(config, guide, device, ema, settings)
    condition = checked_condition(model, count, options, classes, prompts)
    options = with_seed_and_precision(options, device, unfinished_meta(output).get("seed"))
    labels = condition if isinstance(condition, Tensor) else None
    names = declared_class_names(config, settings) if class_names is None else class_names
    meta = provenance(config, checkpoint, options, device, ema, guide, settings) | named_labels(labels, names)
    if prompts is not None:
        meta["captions"] = condition
    header = SampleHeader(count, labels, meta)

    def draw(path: Path, part: SampleHeader, batches: range) -> None:
        with SampleWriter(path, part.count, part.labels, part.meta) as writer:
            if writer.done:
                logger.info("%s: %d of %d images are there from a run that was stopped", path, writer.done, part.count)
            left = range(batches.start + batch_count(writer.done, options), batches.stop)
            for images in sample_batches(model, count, options, condition, left, shard.first, weaker):
                writer.write(images)
            writer.finish()

    return _write_share(output, header, shard, options, draw)


def _write_share(
    output: Path,
    header: SampleHeader,
    shard: Shard,
    options: SamplingOptions,
    draw: Callable[[Path, SampleHeader, range], None],
) -> bool:
    """Draw the batches of a shard, and merge all parts if they are there; whether ``output`` is complete.

    ``draw`` writes the batches of these numbers into a file with this header.
    """
    total = batch_count(header.count, options)
    if shard.whole:
        draw(output, header, range(total))
        return True
    if output.exists() and not header.differences(output):
        return True  # a process that starts again after the merge
    parts = header.parts(shard.count, output, options)
    own = shard.files(output)[shard.index]
    if own in parts and not is_finished(own, parts[own]):
        draw(own, parts[own], shard.part(total))
    return merge_when_complete(output, list(parts), lambda _: merge_parts(output, header, parts, options.batch_size))


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


def load_guide(
    config: str | Path, guide: str | Path | None, device: torch.device, ema: bool, settings: Sequence[str] = ()
) -> LatentDenoiser | None:
    """The weaker model of guidance, of the same configuration; None without one."""
    return None if guide is None else load_model(config, guide, device, ema, settings)


def with_seed_and_precision(options: SamplingOptions, device: torch.device, seed: int | None = None) -> SamplingOptions:
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
    settings: Sequence[str] = (),
) -> dict[str, Any]:
    """Provenance of a sample file: input files with digests, settings, weights, options and the kind of device."""
    return {
        "config": str(config),
        "config_sha256": file_digest(config),
        "checkpoint": str(checkpoint),
        "checkpoint_sha256": file_digest(checkpoint),
        **({"settings": list(settings)} if settings else {}),
        **({} if guide is None else {"guide_sha256": file_digest(guide)}),
        "ema": ema,
        "device": device.type,
        **asdict(options),
    }
