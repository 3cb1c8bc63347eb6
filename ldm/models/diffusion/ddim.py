"""DDIM sampling (Song et al. 2021): the step as a pure function, and the lineage's `DDIMSampler` around it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ldm.models.diffusion.sampler import DDIMGrid, Predict, Sampler, Step, Timesteps


def ddim_step(
    x: Tensor, eps: Tensor, alpha: float, alpha_prev: float, sigma: float, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One step of Song et al. 2021, equation 12; returns x_prev and the estimate of x_0, both (B, C, H, W).

    Notation: ``x`` is x_t, ``eps`` is epsilon_theta(x_t), ``alpha`` is alpha_t and ``alpha_prev`` is alpha_{t-1} (both
    cumulative products in (0, 1]), ``sigma`` is sigma_t >= 0, ``noise`` is epsilon_t, ``x0`` is the predicted x_0 and
    ``x_prev`` is x_{t-1}. Without ``noise`` the random term is left out.
    """
    # float32 arithmetic on the tables, as in the lineage, in Python numbers: nothing is copied to the device
    a, a_prev, s = np.float32(alpha), np.float32(alpha_prev), np.float32(sigma)
    one, least = np.float32(1.0), np.float32(0.0)
    x0 = (x - float(np.sqrt(one - a)) * eps) / float(np.sqrt(a))
    x_prev = float(np.sqrt(a_prev)) * x0 + float(np.sqrt(max(one - a_prev - s * s, least))) * eps
    return (x_prev if noise is None else x_prev + float(s) * noise), x0


class DDIMSampler(Sampler):
    """Samples a diffusion model in few steps, deterministic (``eta`` 0) to ancestral (1); see `Sampler.sample`."""

    title = "DDIM"

    def grid(self, steps: int, eta: float, timesteps: Timesteps | None) -> DDIMGrid:
        return DDIMGrid.make(self.model.alphas_cumprod, steps, eta, timesteps)

    def stepper(self, grid: DDIMGrid, predict: Predict, temperature: float) -> Step:
        def step(x: Tensor, index: int) -> tuple[Tensor, Tensor]:
            eps = predict(x, index)
            sigma = float(grid.sigmas[index])
            noise = torch.randn_like(x) * temperature if sigma > 0 else None
            return ddim_step(x, eps, float(grid.alphas[index]), float(grid.alphas_prev[index]), sigma, noise)

        return step
