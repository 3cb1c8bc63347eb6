"""DPM-Solver++(2M) sampling (Lu et al. 2022, arXiv 2211.01095): few deterministic steps of second order."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.errors import UserError
from ldm.models.diffusion.ddim import DDIMGrid, guided_noise

# With fewer steps than this the last one is of first order: an extrapolation over so long an interval overshoots.
STEADY_STEPS = 15


def half_log_snr(alpha: float) -> float:
    """lambda = log(sqrt(alpha) / sqrt(1 - alpha)) of a cumulative product ``alpha`` in (0, 1)."""
    return 0.5 * (math.log(alpha) - math.log1p(-alpha))


def even_timesteps(alphas_cumprod: Tensor, steps: int) -> np.ndarray:
    """``steps`` ascending timesteps (S,) int64, as evenly spaced in `half_log_snr` as whole numbers can be.

    On a grid even in time the last interval is so long in that measure that the second order is lost.
    Raises UserError for steps outside [1, T].
    """
    levels = alphas_cumprod.detach().cpu().double().numpy()
    total = len(levels)
    if not 1 <= steps <= total:
        raise UserError(f"{steps} steps asked of a diffusion with {total} steps; choose from 1 to {total}, e.g. 20")
    if steps == total:
        return np.arange(total)
    snr = 0.5 * (np.log(levels) - np.log1p(-levels))
    nodes = np.linspace(snr[-1], snr[0], steps + 1)[:-1][::-1]  # the end, level 0, is arrived at and not visited
    nearest_index = np.rint(np.interp(-nodes, -snr, np.arange(total))).astype(np.int64)
    rank = np.arange(steps)  # where neighbours meet, they are pushed apart
    distinct = np.maximum.accumulate(np.maximum(nearest_index, 1) - rank) + rank
    return np.minimum(distinct, total - steps + rank)


def dpm_step(
    x: Tensor, x0: Tensor, alpha: float, alpha_prev: float, earlier: Tensor | None = None, last: float = 0.0
) -> Tensor:
    """One step of algorithm 2 from level ``alpha`` to ``alpha_prev``, given the estimate ``x0`` of the data at x.

    ``earlier`` is the estimate of the step before, which was ``last`` > 0 long in `half_log_snr`; without it the step
    is of first order, which is DDIM's.
    """
    length = half_log_snr(alpha_prev) - half_log_snr(alpha)
    if earlier is not None:
        x0 = x0 + length / (2 * last) * (x0 - earlier)
    shrink = math.sqrt((1 - alpha_prev) / (1 - alpha))
    return shrink * x - math.sqrt(alpha_prev) * math.expm1(-length) * x0


class DPMSolverSampler:
    """Samples a diffusion model in few deterministic steps; ``sample`` has the arguments of `DDIMSampler`."""

    def __init__(self, model: Any):
        self.model = model

    @torch.no_grad()
    def sample(
        self,
        S: int,
        batch_size: int,
        shape: Sequence[int],
        conditioning: Any = None,
        *,
        eta: float = 0.0,
        timesteps: Sequence[int] | None = None,
        x_T: Tensor | None = None,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
        temperature: float = 1.0,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None,
        log_every_t: int = 100,
        callback: Callable[[int], None] | None = None,
        verbose: bool = False,
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Draw ``batch_size`` latents of ``shape`` (C, H, W) in ``S`` steps, or at the given ``timesteps``.

        Without ``timesteps`` the grid is that of `even_timesteps`. ``temperature`` scales the noise of a step, of
        which there is none here. Result and other arguments: see `DDIMSampler.sample`.
        Raises UserError for steps outside [1, T] or eta other than 0.
        """
        if eta != 0:
            raise UserError(f"eta: {eta} adds noise, which DPM-Solver cannot use; set eta to 0, or sample with DDIM")
        model = self.model
        visited = even_timesteps(model.alphas_cumprod, S) if timesteps is None else timesteps
        grid = DDIMGrid.make(model.alphas_cumprod, S, 0.0, visited)
        device = model.betas.device
        x = torch.randn((batch_size, *shape), device=device) if x_T is None else x_T
        kept: dict[str, list[Tensor]] = {"x_inter": [x], "pred_x0": [x]}
        earlier: Tensor | None = None
        last = 0.0
        steps = range(len(grid) - 1, -1, -1)
        for count, index in enumerate(tqdm(steps, desc="DPM-Solver", disable=not verbose)):
            t = torch.full((batch_size,), int(grid.timesteps[index]), device=device, dtype=torch.long)
            if mask is not None:
                x = model.q_sample(x0, t) * mask + (1.0 - mask) * x
            eps = guided_noise(model, x, t, conditioning, unconditional_conditioning, unconditional_guidance_scale)
            alpha, alpha_prev = float(grid.alphas[index]), float(grid.alphas_prev[index])
            estimate = (x - math.sqrt(1 - alpha) * eps) / math.sqrt(alpha)
            first_order = index == 0 and len(grid) < STEADY_STEPS
            x = dpm_step(x, estimate, alpha, alpha_prev, None if first_order else earlier, last)
            earlier, last = estimate, half_log_snr(alpha_prev) - half_log_snr(alpha)
            if callback is not None:
                callback(count)
            if index % log_every_t == 0 or index == len(grid) - 1:
                kept["x_inter"].append(x)
                kept["pred_x0"].append(estimate)
        return x, kept
