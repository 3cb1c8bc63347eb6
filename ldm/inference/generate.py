"""Images from a loaded model: conditions, the sampling loop over batches, and the decoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.errors import UserError
from ldm.inference.batches import batches_of
from ldm.inference.decode import Decoder, lower_precision
from ldm.inference.options import SamplingOptions
from ldm.inference.prompts import check_prompts, cycled, takes_text
from ldm.inference.request import check_count
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.dpm_solver import DPMSolverSampler
from ldm.models.diffusion.guidance import Autoguided
from ldm.models.diffusion.latent_denoiser import LatentDenoiser
from ldm.models.diffusion.plms import PLMSSampler
from ldm.models.diffusion.unipc import UniPCSampler
from ldm.samples import SampleSet

#: One bar for all batches, which moves within a batch; counts are whole images.
BAR = "{desc} {percentage:3.0f}% {bar} {n:.0f} of {total_fmt} images [{elapsed}<{remaining}]"

SAMPLERS: dict[str, Callable[[Any], Any]] = {
    "ddim": DDIMSampler,
    "plms": PLMSSampler,
    "dpm-solver++": DPMSolverSampler,
    "unipc": UniPCSampler,
}


def labels_for(classes: Sequence[int] | None, count: int) -> Tensor | None:
    """Exactly ``count`` labels (count,) int64, class by class; the first classes get the remainder."""
    if classes is None:
        return None
    share, rest = divmod(count, len(classes))
    repeats = torch.tensor([share + (1 if index < rest else 0) for index in range(len(classes))])
    return torch.repeat_interleave(torch.tensor(list(classes), dtype=torch.long), repeats)


def check_classes(model: LatentDenoiser, classes: Sequence[int] | None) -> None:
    """Raise UserError for classes that the model does not have, or a condition that is missing or superfluous."""
    stage = model.cond_stage_model
    if stage is None:
        if classes is not None:
            raise UserError("this model is unconditional and has no --classes; use sampling/unconditional_sampling.py")
        return
    if takes_text(model):
        raise UserError(
            "this model takes text and no classes; use txt2img.py, or sampling/caption_sampling.py --prompt"
        )
    known = getattr(stage, "n_classes", None)
    if known is None:
        return
    if not classes:
        raise UserError(f"this model is class-conditional; name classes from 0 to {known - 1}, such as --classes 0 1 2")
    for label in classes:
        if not 0 <= label < known:
            raise UserError(f"class {label} is out of range: the model has {known} classes, 0 to {known - 1}")


def sample_images(
    model: LatentDenoiser,
    count: int,
    options: SamplingOptions,
    labels: Tensor | Sequence[str] | None = None,
    progress: bool = True,
    guide: LatentDenoiser | None = None,
) -> Tensor:
    """Draw ``count`` images (count, C, H, W) float32 in [-1, 1] on the CPU; see `sample_batches`."""
    made = list(sample_batches(model, count, options, labels, progress=progress, guide=guide))
    return torch.cat(made) if made else torch.empty(0, *latent_shape(model, options))


@torch.no_grad()
def sample_batches(
    model: LatentDenoiser,
    count: int,
    options: SamplingOptions,
    labels: Tensor | Sequence[str] | None = None,
    batches: range | None = None,
    progress: bool = True,
    guide: LatentDenoiser | None = None,
) -> Iterator[Tensor]:
    """Draw ``count`` images, ``options.batch_size`` at a time: (B, C, H, W) float32 in [-1, 1] on the CPU.

    ``labels`` (count,) or ``count`` captions are the condition. Only the ``batches`` of these numbers are drawn, by
    default all of them. The random numbers of a batch follow from the seed and its number alone (`batch_seed`), so that
    a process may draw any of the batches; results depend on the batch size and the device, too. ``guide`` is a weaker
    model of the same latents, away from which ``options.guidance`` leads (see `Autoguided`).
    """
    device = model.betas.device
    decode = Decoder(model, options.decoder_batch_size, options.precision)
    if options.compile:
        model.model.compile()
    sampler = SAMPLERS[options.sampler](model if guide is None else Autoguided(model, guide, options.guidance))
    shape = latent_shape(model, options)
    chosen = range(batches_of(count, options.batch_size)) if batches is None else batches
    with tqdm(total=count, desc="sampling", bar_format=BAR, disable=not progress) as bar:
        bar.update(chosen.start * options.batch_size)
        for number in chosen:
            start = number * options.batch_size
            size = min(options.batch_size, count - start)
            if options.seed is not None:
                torch.manual_seed(batch_seed(options.seed, number))
            rows = None if labels is None else labels[start : start + size]
            with lower_precision(device, options.precision == "bf16"):
                condition, without = all_conditions(model, guide, rows, options)
                latents, _ = sampler.sample(
                    options.steps,
                    size,
                    shape,
                    condition,
                    eta=options.eta,
                    unconditional_guidance_scale=options.guidance,
                    unconditional_conditioning=without,
                    callback=partial(_advance, bar, start, size, options.steps),
                )
            yield decode(latents)
            bar.update(start + size - bar.n)


def _advance(bar: Any, start: int, size: int, steps: int, step: int) -> None:
    """Move the bar of a batch that began at ``start`` images, after its step number ``step`` (from 0)."""
    share = min(step + 1, steps) / (steps + 1)  # the last part is the decoder's
    bar.update(start + size * share - bar.n)


def batch_seed(seed: int, number: int) -> int:
    """Seed of a batch, in [0, 2^32): that of the run for batch 0, and no two batches of a run have the same.

    The factor is odd, so that the products are distinct modulo 2^32; it is 2^32 divided by the golden ratio, so that
    the batches of seeds next to each other are distinct as well.
    """
    return (seed + 0x9E3779B9 * number) % 2**32


def all_conditions(
    model: LatentDenoiser, guide: LatentDenoiser | None, rows: Tensor | Sequence[str] | None, options: SamplingOptions
) -> Any:
    """The encoded condition of a batch and the unconditional one; with a ``guide`` the pair of both models' conditions.

    Each model encodes the condition itself, because the encoder may have been trained with it.
    """
    if guide is None:
        return conditions(model, rows, options)
    plain = replace(options, guidance=1.0)
    return (conditions(model, rows, plain)[0], conditions(guide, rows, plain)[0]), None


def conditions(
    model: LatentDenoiser, labels: Tensor | Sequence[str] | None, options: SamplingOptions
) -> tuple[Any, Any]:
    """The encoded condition of a batch, and the unconditional one of guidance (None without guidance)."""
    if labels is None or model.cond_stage_model is None:
        return None, None
    if not isinstance(labels, Tensor):
        condition = model.get_learned_conditioning(list(labels))
        if options.guidance == 1.0:
            return condition, None
        return condition, model.get_learned_conditioning([""]).expand_as(condition)
    labels = labels.to(model.betas.device)
    condition = model.get_learned_conditioning({"class_label": labels})
    if options.guidance == 1.0:
        return condition, None
    null = options.uncond_class
    stage: Any = model.cond_stage_model
    if null is None and getattr(stage, "ucg_rate", 0.0) > 0:
        null = stage.null_class
    if null is None:
        raise UserError(
            "guidance needs a class that stands for no condition; name it with --uc, or set the guidance to 1"
        )
    check_classes(model, [null])
    return condition, model.get_learned_conditioning({"class_label": torch.full_like(labels, null)})


def draw_samples(
    model: LatentDenoiser,
    count: int,
    options: SamplingOptions,
    classes: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
    guide: LatentDenoiser | None = None,
) -> SampleSet:
    """``count`` images of a loaded model: class by class with labels, or of ``prompts`` in order, repeated as needed.

    The caption of every image is in ``meta["captions"]``. Raises UserError before the first image.
    """
    condition = checked_condition(model, count, options, classes, prompts)
    images = sample_images(model, count, options, condition, guide=guide)
    if prompts is not None:
        return SampleSet(images, None, {"captions": condition})
    return SampleSet(images, condition)


def checked_condition(
    model: LatentDenoiser,
    count: int,
    options: SamplingOptions,
    classes: Sequence[int] | None,
    prompts: Sequence[str] | None,
) -> Any:
    """The condition of ``count`` images: labels (count,), ``count`` captions, or None. Raises UserError."""
    check_count(count)
    if prompts is None:
        check_classes(model, classes)
        return labels_for(classes, count)
    if classes is not None:
        raise UserError("classes and captions were both given; give one of them")
    if options.uncond_class is not None:
        raise UserError("a class without condition was named; guidance by text uses the empty caption, leave --uc out")
    check_prompts(model, prompts)
    return cycled(prompts, count)


@torch.no_grad()
def image_side(model: LatentDenoiser) -> int:
    """Height and width in pixels of a model's generated images."""
    latent = torch.zeros(1, *model.latent_shape, device=model.betas.device)
    return model.decode_first_stage(latent).shape[-1]


def latent_shape(model: LatentDenoiser, options: SamplingOptions) -> tuple[int, int, int]:
    """Shape (C, h, w) of the latents of one image. Raises UserError for a size that the networks do not support."""
    if options.height is None and options.width is None:
        return model.latent_shape
    side = image_side(model)
    factor = side // model.image_size
    multiple = factor * 2 ** (len(model.unet_params.get("channel_mult", (1,))) - 1)
    pixels = [side if value is None else value for value in (options.height, options.width)]
    for name, value in zip(("height", "width"), pixels, strict=True):
        if value % multiple:
            raise UserError(f"{name}: {value} pixels; this model makes multiples of {multiple}, best {side}")
    return model.channels, pixels[0] // factor, pixels[1] // factor
