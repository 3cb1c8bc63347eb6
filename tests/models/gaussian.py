"""A diffusion model whose noise prediction is known in closed form."""

from __future__ import annotations

import torch


class Gaussian:
    """Predicts the noise in data from N(0, variance) without error; counts its calls."""

    parameterization = "eps"

    def __init__(self, variance=0.25, steps=1000):
        self.betas = torch.linspace(0.0015**0.5, 0.0195**0.5, steps, dtype=torch.float64).square().float()
        self.alphas_cumprod = torch.cumprod(1.0 - self.betas, dim=0)
        self.variance, self.calls = variance, 0

    def apply_model(self, x, t, cond):
        self.calls += 1
        alpha = self.alphas_cumprod[t].reshape(-1, 1, 1, 1)
        return (1.0 - alpha).sqrt() * x / (alpha * self.variance + 1.0 - alpha)

    def q_sample(self, x0, t):
        return x0 * self.alphas_cumprod[t].reshape(-1, 1, 1, 1).sqrt()

    def flow_end(self, x):
        """Where the deterministic flow takes x from the last level to that of index 0: it keeps x / its deviation."""
        deviation = (self.alphas_cumprod * self.variance + 1.0 - self.alphas_cumprod).sqrt()
        return x / deviation[-1] * deviation[0]
