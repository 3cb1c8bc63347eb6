"""Ancestral sampling of a diffusion model over all timesteps (Ho et al. 2020, algorithm 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.errors import UserError
from ldm.models.diffusion.protocols import AncestralModel


@torch.no_grad()
def p_mean_variance(model: AncestralModel, x: Tensor, cond: Any, t: Tensor, clip_denoised: bool) -> tuple[Tensor, ...]:
    """Mean, variance, clipped log-variance of p(x_{t-1} | x_t), and the estimate of x_0 behind them."""
    x0 = model.predict_x0(x, t, model.apply_model(x, t, cond))
    if clip_denoised:
        x0 = x0.clamp(-1.0, 1.0)
    return (*model.q_posterior(x0, x, t), x0)


@torch.no_grad()
def p_sample(
    model: AncestralModel, x: Tensor, cond: Any, t: Tensor, *, clip_denoised: bool, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """One step from x_t to x_{t-1}; returns it and the estimate of x_0, both (B, C, H, W).

    Notation of Ho et al. 2020: ``x`` is x_t, ``x0`` the estimate of x_0, ``mean`` is mu_theta(x_t, t),
    ``exp(log_variance)`` is sigma_t^2, ``noise`` is z. ``temperature`` scales the noise.
    """
    mean, _, log_variance, x0 = p_mean_variance(model, x, cond, t, clip_denoised)
    noise = torch.randn_like(x) * temperature
    keep = (t > 0).float().reshape(-1, *[1] * (x.ndim - 1))
    return mean + keep * (0.5 * log_variance).exp() * noise, x0


def _steps(model: AncestralModel, timesteps: int | None, start_T: int | None) -> range:
    count = model.num_timesteps if timesteps is None else timesteps
    return range((count if start_T is None else min(count, start_T)) - 1, -1, -1)


def p_sample_loop(
    model: AncestralModel,
    cond: Any,
    shape: Sequence[int],
    *,
    return_intermediates: bool = False,
    x_T: Tensor | None = None,
    verbose: bool = False,
    timesteps: int | None = None,
    start_T: int | None = None,
    log_every_t: int | None = None,
    mask: Tensor | None = None,
    x0: Tensor | None = None,
) -> Any:
    """Sample from pure noise (or ``x_T``) down to x_0; returns the sample, with ``return_intermediates`` also a list.

    ``mask`` (1 = keep) together with ``x0`` re-imposes known content after every step.
    """
    if (mask is None) != (x0 is None):
        raise UserError("give both a mask and x0 (the content it keeps), or neither")
    every = model.log_every_t if log_every_t is None else log_every_t
    image = torch.randn(tuple(shape), device=model.device) if x_T is None else x_T
    kept = [image]
    steps = _steps(model, timesteps, start_T)
    for index in tqdm(steps, desc="sampling t", disable=not verbose):
        t = torch.full((shape[0],), index, device=model.device, dtype=torch.long)
        image, _ = p_sample(model, image, cond, t, clip_denoised=model.clip_denoised)
        if mask is not None and x0 is not None:
            image = model.q_sample(x0, t) * mask + (1.0 - mask) * image
        if index % every == 0 or index == len(steps) - 1:
            kept.append(image)
    return (image, kept) if return_intermediates else image


def progressive_denoising(
    model: AncestralModel,
    cond: Any,
    shape: Sequence[int],
    *,
    verbose: bool = False,
    x_T: Tensor | None = None,
    start_T: int | None = None,
    log_every_t: int | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, list[Tensor]]:
    """As `p_sample_loop`, but also returns the intermediate estimates of x_0."""
    every = model.log_every_t if log_every_t is None else log_every_t
    image = torch.randn(tuple(shape), device=model.device) if x_T is None else x_T
    kept = []
    steps = _steps(model, None, start_T)
    for index in tqdm(steps, desc="progressive t", disable=not verbose):
        t = torch.full((shape[0],), index, device=model.device, dtype=torch.long)
        image, x0 = p_sample(model, image, cond, t, clip_denoised=model.clip_denoised, temperature=temperature)
        if index % every == 0 or index == len(steps) - 1:
            kept.append(x0)
    return image, kept
