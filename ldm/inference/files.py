"""Sample files: a model and its options to images on disk, by one process or by several, resumable."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.cli import pick_device
from ldm.errors import UserError
from ldm.files import file_digest
from ldm.inference.batches import SampleHeader, whole_set, write_batches
from ldm.inference.class_names import declared_class_names, named_labels
from ldm.inference.decode import supported_precision
from ldm.inference.generate import checked_condition, sample_batches
from ldm.inference.load import load_model
from ldm.inference.options import SamplingOptions
from ldm.inference.request import ModelSource, SamplePlan, SamplingRequest
from ldm.models.diffusion.latent_denoiser import LatentDenoiser
from ldm.samples import SampleSet, first_images, save_grid, unfinished_meta
from ldm.samples.shards import WHOLE, Shard

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
    return whole_set(Drawing.prepare(source, plan, device))


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
    return write_batches(output, Drawing.prepare(source, plan, device, unfinished_meta(output).get("seed")), shard)


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
    def batch_size(self) -> int:
        """Images that are sampled at once."""
        return self.options.batch_size

    def batches(self, numbers: range, progress: bool = True) -> Iterator[Tensor]:
        """The images of the batches with these numbers."""
        count = self.header.count
        yield from sample_batches(self.model, count, self.options, self.condition, numbers, progress, self.guide)


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
