"""The constants of a Gaussian diffusion process, as tensors that a model registers as buffers."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BUFFERS = (
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)


def diffusion_constants(betas: np.ndarray, v_posterior: float = 0.0) -> dict[str, Tensor]:
    """Compute the twelve schedule buffers of the lineage, each float32 of shape (T,).

    ``betas`` are float64 in (0, 1); the arithmetic stays in float64 and is rounded once at the end.
    ``v_posterior`` in [0, 1] interpolates the posterior variance between its lower bound (0) and beta (1).
    Source: Ho et al. 2020, equations 4, 6 and 7; the interpolation is that of Nichol and Dhariwal 2021.
    """
    alphas_cumprod = np.cumprod(1.0 - betas)
    previous = np.append(1.0, alphas_cumprod[:-1])
    variance = (1.0 - v_posterior) * betas * (1.0 - previous) / (1.0 - alphas_cumprod) + v_posterior * betas
    constants = {
        "betas": betas,
        "alphas_cumprod": alphas_cumprod,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": np.sqrt(alphas_cumprod),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(1.0 - alphas_cumprod),
        "log_one_minus_alphas_cumprod": np.log(1.0 - alphas_cumprod),
        "sqrt_recip_alphas_cumprod": np.sqrt(1.0 / alphas_cumprod),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(1.0 / alphas_cumprod - 1.0),
        "posterior_variance": variance,
        # the first posterior variance is zero, so the logarithm is clipped
        "posterior_log_variance_clipped": np.log(np.maximum(variance, 1e-20)),
        "posterior_mean_coef1": betas * np.sqrt(previous) / (1.0 - alphas_cumprod),
        "posterior_mean_coef2": (1.0 - previous) * np.sqrt(1.0 - betas) / (1.0 - alphas_cumprod),
    }
    return {name: torch.tensor(constants[name], dtype=torch.float32) for name in BUFFERS}


def elbo_weights(constants: dict[str, Tensor], betas: np.ndarray, parameterization: str) -> Tensor:
    """Per-timestep weights (T,) of the variational bound relative to the simple loss.

    Source: Ho et al. 2020, equation 12 for the noise parameterization. The weight of x0 is the lineage's
    own expression. Index 0, where the posterior variance vanishes, repeats index 1.
    """
    if parameterization == "eps":
        alphas = torch.tensor(1.0 - betas, dtype=torch.float32)
        weights = constants["betas"] ** 2 / (
            2 * constants["posterior_variance"] * alphas * (1 - constants["alphas_cumprod"])
        )
    else:
        weights = 0.5 * torch.sqrt(constants["alphas_cumprod"]) / (2.0 - constants["alphas_cumprod"])
    if len(weights) > 1:
        weights[0] = weights[1]
    return weights
