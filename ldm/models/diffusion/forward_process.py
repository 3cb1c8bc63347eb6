"""The Gaussian forward process of a diffusion model: noise schedule, q(x_t | x_0) and the posterior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ldm.checkpoint.tensors import is_rounded, require_finite
from ldm.errors import UserError
from ldm.models.diffusion.schedule import diffusion_constants, elbo_weights
from ldm.modules.diffusionmodules.util import extract_into_tensor, make_beta_schedule


class ForwardProcess(nn.Module):
    """The part of a diffusion model that has no weights: schedule buffers (T,) and functions of them.

    Images and noise are (B, C, H, W), timesteps (B,) int64 in [0, T). A subclass sets ``parameterization`` and
    ``v_posterior`` and then calls `_register_schedule`.
    """

    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    log_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor
    lvlb_weights: Tensor
    parameterization: str
    v_posterior: float
    num_timesteps: int

    def _register_schedule(
        self,
        beta_schedule: str,
        timesteps: int,
        linear_start: float,
        linear_end: float,
        cosine_s: float,
        given_betas: Sequence[float] | None,
    ) -> None:
        if given_betas is None and not (0 < linear_start < 1 and 0 < linear_end < 1):  # true for NaN
            raise UserError(
                f"linear_start is {linear_start} and linear_end {linear_end}; each is a beta between 0 and 1"
            )
        betas = (
            np.asarray(given_betas, dtype=np.float64)
            if given_betas is not None
            else make_beta_schedule(
                beta_schedule, timesteps, linear_start=linear_start, linear_end=linear_end, cosine_s=cosine_s
            )
        )
        if not len(betas) or not ((betas > 0) & (betas < 1)).all():  # false for NaN
            raise UserError(
                f"the noise schedule has betas from {betas.min(initial=1):.3g} to {betas.max(initial=0):.3g}; each is "
                "a number between 0 and 1"
            )
        self.num_timesteps = len(betas)
        constants = diffusion_constants(betas, self.v_posterior)
        for name, value in constants.items():
            self.register_buffer(name, value)
        self.register_buffer("lvlb_weights", elbo_weights(constants, betas, self.parameterization), persistent=False)

    def _check_schedule(self, state: Mapping[str, Tensor], source: str) -> None:
        stored = state.get("betas")
        if stored is None:
            return
        require_finite({"betas": stored}, source)
        rtol, atol = 1e-4, 1e-8
        if is_rounded(stored):
            rounded = torch.finfo(stored.dtype)
            rtol, atol = rounded.eps, max(1e-7, rounded.smallest_normal * rounded.eps)
        if stored.shape != self.betas.shape or not torch.allclose(
            stored.float(), self.betas.cpu(), rtol=rtol, atol=atol
        ):
            raise UserError(
                f"{source}: was trained with another noise schedule ({len(stored)} steps, beta "
                f"{float(stored[0]):.3g}..{float(stored[-1]):.3g}) than the config gives ({self.num_timesteps} steps, "
                f"{float(self.betas[0]):.3g}..{float(self.betas[-1]):.3g}); set timesteps, beta_schedule, linear_start "
                "and linear_end to those of the checkpoint"
            )

    def q_mean_variance(self, x_start: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and log-variance of q(x_t | x_0) (Ho et al. 2020, equation 4)."""
        mean = extract_into_tensor(self.sqrt_alphas_cumprod, t, x_start.shape) * x_start
        variance = extract_into_tensor(1.0 - self.alphas_cumprod, t, x_start.shape)
        return mean, variance, extract_into_tensor(self.log_one_minus_alphas_cumprod, t, x_start.shape)

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """Draw x_t (B, C, H, W) from q(x_t | x_0), with the given standard normal ``noise`` if any."""
        noise = torch.randn_like(x_start) if noise is None else noise
        return (
            extract_into_tensor(self.sqrt_alphas_cumprod, t, x_start.shape) * x_start
            + extract_into_tensor(self.sqrt_one_minus_alphas_cumprod, t, x_start.shape) * noise
        )

    def predict_start_from_noise(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Invert `q_sample`: x_0 from x_t and the noise in it."""
        return (
            extract_into_tensor(self.sqrt_recip_alphas_cumprod, t, x_t.shape) * x_t
            - extract_into_tensor(self.sqrt_recipm1_alphas_cumprod, t, x_t.shape) * noise
        )

    def q_posterior(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and clipped log-variance of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, equations 6 and 7)."""
        mean = (
            extract_into_tensor(self.posterior_mean_coef1, t, x_t.shape) * x_start
            + extract_into_tensor(self.posterior_mean_coef2, t, x_t.shape) * x_t
        )
        variance = extract_into_tensor(self.posterior_variance, t, x_t.shape)
        return mean, variance, extract_into_tensor(self.posterior_log_variance_clipped, t, x_t.shape)

    def predict_x0(self, x_t: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """The estimate of x_0 for the network's output, under either parameterization."""
        return self.predict_start_from_noise(x_t, t, output) if self.parameterization == "eps" else output
