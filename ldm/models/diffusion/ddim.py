"""DDIM sampling (Song et al. 2021): the step as a pure function, and the lineage's `DDIMSampler` around it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.models.diffusion.sampler import DDIMGrid, Predict, Sampler, Step


def ddim_step(
    x: Tensor, eps: Tensor, alpha: float, alpha_prev: float, sigma: float, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One step of Song et al. 2021, equation 12: from x_t and the predicted noise to x_prev and the estimate of x_0."""
    # float32 arithmetic on the tables, as the lineage does it
    alpha, alpha_prev, sigma = (
        torch.tensor(v, dtype=torch.float32, device=x.device) for v in (alpha, alpha_prev, sigma)
    )
    x0 = (x - (1.0 - alpha).sqrt() * eps) / alpha.sqrt()
    x_prev = alpha_prev.sqrt() * x0 + (1.0 - alpha_prev - sigma**2).clamp(min=0.0).sqrt() * eps
    return (x_prev if noise is None else x_prev + sigma * noise), x0


class DDIMSampler(Sampler):
    """Samples a diffusion model in few steps, deterministic (``eta`` 0) to ancestral (1); see `Sampler.sample`."""

    title = "DDIM"

    def grid(self, steps: int, eta: float, timesteps: Sequence[int] | None) -> DDIMGrid:
        return DDIMGrid.make(self.model.alphas_cumprod, steps, eta, timesteps)

    def stepper(self, grid: DDIMGrid, predict: Predict, temperature: float) -> Step:
        def step(x: Tensor, index: int) -> tuple[Tensor, Tensor]:
            eps = predict(x, index)
            sigma = float(grid.sigmas[index])
            noise = torch.randn_like(x) * temperature if sigma > 0 else None
            return ddim_step(x, eps, float(grid.alphas[index]), float(grid.alphas_prev[index]), sigma, noise)

        return step
