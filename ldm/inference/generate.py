"""Driver of the sampling commands: from YAML and a checkpoint to images."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.errors import UserError
from ldm.files import check_writable, file_digest
from ldm.inference.class_names import declared_class_names, named_labels
from ldm.inference.load import load_model
from ldm.inference.prompts import check_prompts, cycled, takes_text
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.dpm_solver import DPMSolverSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.samples import SampleSet, SampleWriter, unfinished_meta

logger = logging.getLogger(__name__)

SAMPLERS: dict[str, Callable[[Any], Any]] = {"ddim": DDIMSampler, "plms": PLMSSampler, "dpm": DPMSolverSampler}


@dataclass(frozen=True)
class SamplingOptions:
    """Options of sampling. ``steps`` in [1, T], ``eta`` in [0, 1], ``scale`` is the guidance scale (1 = none).

    ``uncond_class`` is the class that stands for "no condition" in guidance; None selects the model's null class, or
    the empty caption for text. ``sampler`` is ddim, plms or dpm; the last two need ``eta`` 0. ``height`` and ``width``
    are in pixels, None for those of the model. Raises UserError for numbers outside these ranges.
    """

    steps: int = 200
    eta: float = 1.0
    scale: float = 1.0
    uncond_class: int | None = None
    batch_size: int = 500
    decoder_batch_size: int | None = None
    seed: int | None = None
    sampler: str = "ddim"
    height: int | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise UserError(f"sampler: {self.sampler!r} is unknown; choose one of {', '.join(SAMPLERS)}")
        if not 0.0 <= self.eta <= 1.0:
            raise UserError(f"eta: {self.eta} is outside [0, 1]; 0 is deterministic, 1 adds ancestral noise")
        if self.sampler != "ddim" and self.eta != 0.0:
            raise UserError(f"eta: {self.eta} adds noise, which only DDIM can use; set eta to 0, or sample with DDIM")
        for name in ("steps", "batch_size", "decoder_batch_size", "height", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name}: {value} is below 1")


def labels_for(classes: Sequence[int] | None, count: int) -> Tensor | None:
    """Exactly ``count`` labels (count,) int64, class by class; the first classes get the remainder."""
    if classes is None:
        return None
    share, rest = divmod(count, len(classes))
    repeats = torch.tensor([share + (1 if index < rest else 0) for index in range(len(classes))])
    return torch.repeat_interleave(torch.tensor(list(classes), dtype=torch.long), repeats)


def check_classes(model: Any, classes: Sequence[int] | None) -> None:
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
    model: Any,
    count: int,
    options: SamplingOptions,
    labels: Tensor | Sequence[str] | None = None,
    progress: bool = True,
) -> Tensor:
    """Draw ``count`` images (count, C, H, W) float32 in [-1, 1] on the CPU; see `sample_batches`."""
    made = list(sample_batches(model, count, options, labels, progress=progress))
    return torch.cat(made) if made else torch.empty(0, *latent_shape(model, options))


@torch.no_grad()
def sample_batches(
    model: Any,
    count: int,
    options: SamplingOptions,
    labels: Tensor | Sequence[str] | None = None,
    first: int = 0,
    progress: bool = True,
) -> Iterator[Tensor]:
    """Draw ``count`` images, ``options.batch_size`` at a time: (B, C, H, W) float32 in [-1, 1] on the CPU.

    ``labels`` (count,) or ``count`` captions are the condition. Results depend on the seed, the batch size and the
    device. With ``first`` > 0, that many images were drawn before; the random numbers then continue from the state that
    the caller has set (see `random_state`), and the seed is not used.
    """
    if options.seed is not None and first == 0:
        torch.manual_seed(options.seed)
    sampler = SAMPLERS[options.sampler](model)
    shape = latent_shape(model, options)
    with tqdm(total=count, initial=first, desc="sampling", unit="image", disable=not progress) as bar:
        for start in range(first, count, options.batch_size):
            size = min(options.batch_size, count - start)
            condition, without = conditions(model, None if labels is None else labels[start : start + size], options)
            latents, _ = sampler.sample(
                options.steps,
                size,
                shape,
                condition,
                eta=options.eta,
                unconditional_guidance_scale=options.scale,
                unconditional_conditioning=without,
            )
            parts = latents.split(options.decoder_batch_size or size)
            yield torch.cat([model.decode_first_stage(part) for part in parts]).float().clamp(-1, 1).cpu()
            bar.update(size)


def random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's random numbers on the CPU and on ``device``."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Restore a state of `random_state` from a device of the same kind."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(state["mps"])


def conditions(model: Any, labels: Tensor | Sequence[str] | None, options: SamplingOptions) -> tuple[Any, Any]:
    """The encoded condition of a batch, and the unconditional one of guidance (None without guidance)."""
    if labels is None or model.cond_stage_model is None:
        return None, None
    if not isinstance(labels, Tensor):
        condition = model.get_learned_conditioning(list(labels))
        if options.scale == 1.0:
            return condition, None
        return condition, model.get_learned_conditioning([""]).expand_as(condition)
    labels = labels.to(model.betas.device)
    condition = model.get_learned_conditioning({"class_label": labels})
    if options.scale == 1.0:
        return condition, None
    null = options.uncond_class
    if null is None and getattr(model.cond_stage_model, "ucg_rate", 0.0) > 0:
        null = model.cond_stage_model.null_class
    if null is None:
        raise UserError("guidance needs a class that stands for no condition; name it with --uc, or set the scale to 1")
    check_classes(model, [null])
    return condition, model.get_learned_conditioning({"class_label": torch.full_like(labels, null)})


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
) -> SampleSet:
    """Load a model and draw a sample set, with labels or ``meta["captions"]``, and with its provenance in ``meta``.

    Captions and labels are those of `draw_samples`. ``class_names`` (those that the configuration declares when None)
    are stored with the labels. Raises UserError.
    """
    check_count(count)
    options = seeded(options)
    names = declared_class_names(config) if class_names is None else class_names
    samples = draw_samples(load_model(config, checkpoint, device, ema), count, options, classes, prompts)
    meta = {**provenance(config, checkpoint, options, device, ema), **named_labels(samples.labels, names)}
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
) -> None:
    """Write the sample set of `sample_set` to a `.pt` file, with one batch in memory at a time.

    A stopped run resumes when it is called again with the same arguments, and gives the same file as an uninterrupted
    run. Raises UserError, also for an unfinished ``output`` of other arguments.
    """
    check_count(count)
    model = load_model(config, checkpoint, device, ema)
    condition = checked_condition(model, count, options, classes, prompts)
    options = seeded(options, unfinished_meta(output).get("seed"))
    labels = condition if isinstance(condition, Tensor) else None
    names = declared_class_names(config) if class_names is None else class_names
    meta = {**provenance(config, checkpoint, options, device, ema), **named_labels(labels, names)}
    if prompts is not None:
        meta["captions"] = condition
    with SampleWriter(output, count, labels, meta) as writer:
        if writer.done:
            logger.info("%s: %d of %d images are there from a run that was stopped", output, writer.done, count)
            set_random_state(writer.state, device)
        for images in sample_batches(model, count, options, condition, first=writer.done):
            writer.write(images, random_state(device))
        writer.finish()


def seeded(options: SamplingOptions, seed: int | None = None) -> SamplingOptions:
    """Options with a seed: their own, else ``seed``, else a new one."""
    if options.seed is not None:
        return options
    return replace(options, seed=secrets.randbits(32) if seed is None else seed)


def provenance(
    config: str | Path, checkpoint: str | Path, options: SamplingOptions, device: torch.device, ema: bool
) -> dict[str, Any]:
    """Provenance of a sample file: input files with digests, weights, options and the kind of device."""
    return {
        "config": str(config),
        "config_sha256": file_digest(config),
        "checkpoint": str(checkpoint),
        "checkpoint_sha256": file_digest(checkpoint),
        "ema": ema,
        "device": device.type,
        **asdict(options),
    }


def draw_samples(
    model: Any,
    count: int,
    options: SamplingOptions,
    classes: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
) -> SampleSet:
    """``count`` images of a loaded model: class by class with labels, or of ``prompts`` in order, repeated as needed.

    The caption of every image is in ``meta["captions"]``. Raises UserError before the first image.
    """
    condition = checked_condition(model, count, options, classes, prompts)
    images = sample_images(model, count, options, condition)
    if prompts is not None:
        return SampleSet(images, None, {"captions": condition})
    return SampleSet(images, condition)


def checked_condition(
    model: Any,
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


def check_count(count: int) -> None:
    """Raise UserError for a number of images below 1."""
    if count < 1:
        raise UserError(f"{count} samples asked for; give the number of images, 1 or more")


@torch.no_grad()
def image_side(model: Any) -> int:
    """Height and width in pixels of a model's generated images."""
    shape = (1, model.channels, model.image_size, model.image_size)
    return model.decode_first_stage(torch.zeros(shape, device=model.betas.device)).shape[-1]


def latent_shape(model: Any, options: SamplingOptions) -> tuple[int, int, int]:
    """Shape (C, h, w) of the latents of one image. Raises UserError for a size that the networks do not support."""
    if options.height is None and options.width is None:
        return model.channels, model.image_size, model.image_size
    side = image_side(model)
    factor = side // model.image_size
    multiple = factor * 2 ** (len(model.unet_params.get("channel_mult", (1,))) - 1)
    pixels = [side if value is None else value for value in (options.height, options.width)]
    for name, value in zip(("height", "width"), pixels, strict=True):
        if value % multiple:
            raise UserError(f"{name}: {value} pixels; this model makes multiples of {multiple}, best {side}")
    return model.channels, pixels[0] // factor, pixels[1] // factor


def check_output(path: str | Path, suffixes: Sequence[str] = (".pt", ".png")) -> Path:
    """Check before sampling that the result can be written. Raises UserError."""
    path = Path(path)
    if path.suffix not in suffixes:
        raise UserError(f"{path}: cannot tell what to write; end the name in {' or '.join(suffixes)}")
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file in it, such as {path / 'samples.pt'}")
    check_writable(path.parent, f"{path}: folder")
    return path
