"""Membership inference from YAML, a checkpoint and two data sets; called by `scripts/membership.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from tqdm import tqdm

from ldm.errors import UserError
from ldm.evaluation.inputs.sources import SAMPLE_SUFFIXES, open_dataset, parse_settings
from ldm.evaluation.leakage.membership import MembershipResult, advantage_bound, membership_inference
from ldm.inference import load_model
from ldm.models.diffusion.latent_denoiser import LatentDenoiser
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.reports.gradient_norms import on_device
from ldm.samples import IMAGE_KEY, LABEL_KEY, SampleSet


@dataclass(frozen=True)
class LossOptions:
    """Settings of an image's loss: ``draws`` timesteps and noises, the same for every image.

    count: greatest number of images of each set, chosen by ``seed``, which also draws the noises.
    """

    draws: int = 16
    count: int = 1000
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("draws", "count", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: {getattr(self, name)} is below 1")


class SampleItems:
    """A sample file as a dataset of items."""

    def __init__(self, samples: SampleSet) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item: dict[str, Any] = {IMAGE_KEY: self.samples.images[index].permute(1, 2, 0)}
        if self.samples.labels is not None:
            item[LABEL_KEY] = int(self.samples.labels[index])
        return item


def open_records(name: str, settings: Sequence[str] = ()) -> Any:
    """The data set ``name``: a sample file, or a dotted class with its ``key:value`` settings."""
    if Path(name).suffix in SAMPLE_SUFFIXES:
        if settings:
            raise UserError(f"{name} is a file; key:value settings only go with a dataset class")
        return SampleItems(SampleSet.load(name))
    return open_dataset(name, parse_settings(settings))


def chosen_records(dataset: Any, options: LossOptions) -> list[int]:
    """Indices of the records to use: ``count`` at random, or all, in order."""
    generator = torch.Generator().manual_seed(options.seed)
    return sorted(torch.randperm(len(dataset), generator=generator)[: options.count].tolist())


@torch.no_grad()
def image_losses(model: LatentDenoiser, dataset: Any, options: LossOptions, progress: str = "") -> NDArray[np.float64]:
    """Mean squared error of the predicted noise of each chosen image (N,), over the same draws of (t, noise).

    Timesteps are evenly spaced over the schedule, and latents are the posterior's mode, so that losses differ by the
    images alone. Computed batch by batch, so memory does not grow with the set.
    """
    model.eval()
    loader = DataLoader(Subset(dataset, chosen_records(dataset, options)), batch_size=options.batch_size)
    times = ((torch.arange(options.draws) + 0.5) * model.num_timesteps / options.draws).long().to(model.device)
    noises: Tensor | None = None
    losses = []
    for raw in tqdm(loader, desc=progress, unit="batch", disable=None):
        batch = on_device(raw, model.device)
        latents = _modes(model, batch)
        if noises is None:
            generator = torch.Generator().manual_seed(options.seed)
            noises = torch.randn(options.draws, *latents.shape[1:], generator=generator).to(latents.device)
        condition = model.raw_condition(batch)
        if condition is not None:
            condition = model.get_learned_conditioning(condition)
        total = torch.zeros(len(latents), dtype=torch.float64, device=latents.device)
        for time, noise in zip(times, noises, strict=True):
            rows = time.expand(len(latents))
            total += model.loss_terms(latents, rows, noise.expand_as(latents), condition)["simple"].double()
        losses.append((total / options.draws).cpu())
    return torch.cat(losses).numpy()


def _modes(model: LatentDenoiser, batch: Any) -> Tensor:
    """Scaled latents of a batch without the posterior's noise."""
    images = batch[model.first_stage_key]
    images = images[..., None] if images.ndim == 3 else images
    moments = model.encode_moments(images.permute(0, 3, 1, 2).contiguous().float())
    if moments.shape[1] == 2 * model.channels:
        moments = DiagonalGaussianDistribution(moments).mode()
    return model.scale_factor * moments


def infer_membership(
    config: str | Path,
    checkpoint: str | Path,
    members: Any,
    held_out: Any,
    options: LossOptions,
    *,
    reference: tuple[str | Path, str | Path] | None = None,
    budget: tuple[float, float] | None = None,
    device: torch.device,
    ema: bool = True,
) -> list[MembershipResult]:
    """Attack a fine-tuned model with its losses on data sets of members and of held-out images.

    reference: configuration and checkpoint of a model trained on neither, such as the public one; a second result then
    subtracts its losses, which is the stronger attack. budget: (epsilon, delta). Raises UserError.
    """

    def losses(yaml: str | Path, ckpt: str | Path) -> list[NDArray[np.float64]]:
        model = load_model(yaml, ckpt, device, ema)
        sets = (("members", members), ("held-out", held_out))
        return [image_losses(model, dataset, options, name) for name, dataset in sets]

    epsilon, delta = budget or (None, None)
    if epsilon is not None and delta is not None:
        advantage_bound(epsilon, delta)  # refuses an invalid budget before the losses are computed
    inside, outside = losses(config, checkpoint)
    results = [membership_inference(inside, outside, epsilon=epsilon, delta=delta)]
    if reference is not None:
        easy_inside, easy_outside = losses(*reference)
        results.append(
            membership_inference(
                inside - easy_inside,
                outside - easy_outside,
                epsilon=epsilon,
                delta=delta,
                attack="loss threshold, calibrated",
            )
        )
    return results
