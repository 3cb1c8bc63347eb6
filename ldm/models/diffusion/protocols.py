"""Protocols of the models that samplers and private training accept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor


class DiffusionModel(Protocol):
    """A discrete-time diffusion model, as the samplers see it. The tables are float32 of shape (T,)."""

    betas: Tensor
    alphas_cumprod: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    num_timesteps: int
    #: Prediction target of the network: the noise (``eps``) or the image (``x0``).
    parameterization: str

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The network's output (B, C, H, W) for x_t (B, C, H, W), timesteps (B,) int64 and an encoded condition."""

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """A draw of x_t (B, C, H, W) from q(x_t | x_0)."""


class AncestralModel(DiffusionModel, Protocol):
    """A diffusion model that supports ancestral sampling (Ho et al. 2020, algorithm 2)."""

    log_every_t: int
    clip_denoised: bool

    @property
    def device(self) -> torch.device:
        """Device of the model."""

    def predict_x0(self, x_t: Tensor, t: Tensor, output: Tensor) -> Tensor:
        """The estimate of x_0 (B, C, H, W) behind the network's output at x_t."""

    def q_posterior(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and log-variance of q(x_{t-1} | x_t, x_0)."""


class PrivateModel(Protocol):
    """A model that a private step can train; its loss is a sum over records."""

    @property
    def device(self) -> torch.device:
        """Device of the model."""

    def expand_batch(self, batch: Mapping[str, Any], multiplicity: int, microbatch: int | None) -> dict[str, Tensor]:
        """The examples of a batch of B records: tensors (B * multiplicity, ...), those of a record next to each other.

        All random draws of the loss are made here. The key ``t`` holds the timesteps (B * multiplicity,). At most
        ``microbatch`` images are encoded at a time, or all of them.
        """

    def per_example_losses(self, examples: Mapping[str, Tensor]) -> Tensor:
        """The losses (N,) of N examples; none depends on another example."""

    def example_batch(self, records: int) -> dict[str, Any] | None:
        """A synthetic batch on the model's device, or None when the model's condition cannot be synthesized."""

    def optimizers(self) -> Any:
        """The optimizer of the trained parameters."""

    def lr_schedulers(self) -> Any:
        """The learning rate schedule, or None."""

    def average_weights(self) -> None:
        """Update the running average (EMA) after a step."""
