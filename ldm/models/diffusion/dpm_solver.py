"""DPM-Solver++(2M) sampling (Lu et al. 2022, arXiv 2211.01095): few deterministic steps of second order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from ldm.errors import UserError
from ldm.models.diffusion.sampler import DDIMGrid, Predict, Sampler, Step, Timesteps

# With fewer steps the last one is of first order, because a second-order extrapolation over a long interval overshoots.
STEADY_STEPS = 15


def half_log_snr(alpha: float) -> float:
    """lambda = log(sqrt(alpha) / sqrt(1 - alpha)) of a cumulative product ``alpha`` in (0, 1)."""
    return 0.5 * (math.log(alpha) - math.log1p(-alpha))


def even_timesteps(alphas_cumprod: Tensor, steps: int) -> np.ndarray[Any, Any]:
    """``steps`` ascending timesteps (S,) int64, as evenly spaced in `half_log_snr` as integers allow.

    A grid that is even in time has a very long last interval in log-SNR, which loses the second-order accuracy.
    Raises UserError for steps outside [1, T].
    """
    levels = alphas_cumprod.detach().cpu().double().numpy()
    total = len(levels)
    if not 1 <= steps <= total:
        raise UserError(f"{steps} steps asked of a diffusion with {total} steps; choose from 1 to {total}, e.g. 20")
    if steps == total:
        return np.arange(total)
    snr = 0.5 * (np.log(levels) - np.log1p(-levels))
    nodes = np.linspace(snr[-1], snr[0], steps + 1)[:-1][::-1]  # the network is not evaluated at the end point, level 0
    nearest_index = np.rint(np.interp(-nodes, -snr, np.arange(total))).astype(np.int64)
    rank = np.arange(steps)  # moves equal neighbours apart
    distinct = np.maximum.accumulate(np.maximum(nearest_index, 1) - rank) + rank
    return np.minimum(distinct, total - steps + rank)


def dpm_step(
    x: Tensor, x0: Tensor, alpha: float, alpha_prev: float, earlier: Tensor | None = None, last: float = 0.0
) -> Tensor:
    """One step of Lu et al. 2022, algorithm 2, from level ``alpha`` to ``alpha_prev``; returns x_prev (B, C, H, W).

    Notation: ``x`` is x at t_{i-1}, ``x0`` is x_theta(x, t_{i-1}), ``earlier`` is x_theta at t_{i-2}, ``length`` is
    h_i, ``last`` > 0 is h_{i-1}, ``alpha`` and ``alpha_prev`` in (0, 1) are the squares of the paper's alpha at t_{i-1}
    and t_i, and 1 minus them those of its sigma. Without ``earlier`` the step is of first order, which is that of DDIM.
    """
    length = half_log_snr(alpha_prev) - half_log_snr(alpha)
    if earlier is not None:
        x0 = x0 + length / (2 * last) * (x0 - earlier)
    shrink = math.sqrt((1 - alpha_prev) / (1 - alpha))
    return shrink * x - math.sqrt(alpha_prev) * math.expm1(-length) * x0


class DPMSolverSampler(Sampler):
    """Samples a diffusion model in few deterministic steps (``eta`` 0); see `Sampler.sample`.

    Without ``timesteps`` the grid is that of `even_timesteps`.
    """

    title = "DPM-Solver"

    def grid(self, steps: int, eta: float, timesteps: Timesteps | None) -> DDIMGrid:
        if eta != 0:
            raise UserError(f"eta: {eta} adds noise, which DPM-Solver cannot use; set eta to 0, or sample with DDIM")
        levels = self.model.alphas_cumprod
        return DDIMGrid.make(levels, steps, 0.0, even_timesteps(levels, steps) if timesteps is None else timesteps)

    def stepper(self, grid: DDIMGrid, predict: Predict, temperature: float) -> Step:
        earlier: Tensor | None = None  # x_0 estimate of the previous step, whose length was `last`
        last = 0.0

        def step(x: Tensor, index: int) -> tuple[Tensor, Tensor]:
            nonlocal earlier, last
            alpha, alpha_prev = float(grid.alphas[index]), float(grid.alphas_prev[index])
            estimate = (x - math.sqrt(1 - alpha) * predict(x, index)) / math.sqrt(alpha)
            first_order = index == 0 and len(grid) < STEADY_STEPS
            x = dpm_step(x, estimate, alpha, alpha_prev, None if first_order else earlier, last)
            earlier, last = estimate, half_log_snr(alpha_prev) - half_log_snr(alpha)
            return x, estimate

        return step
