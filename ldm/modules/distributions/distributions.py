"""Diagonal Gaussian posterior of the autoencoder (Kingma and Welling 2014)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

IMAGE_DIMS = (1, 2, 3)


class DiagonalGaussianDistribution:
    """Independent normal distributions, one per latent number.

    `parameters` (B, 2z, h, w): the first z channels are the means, the others the log-variances (clamped to [-30, 20]).
    `deterministic` sets the standard deviation to zero, so that samples are the means.
    """

    def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
        self.parameters = parameters
        self.deterministic = deterministic
        self.mean, logvar = parameters.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)
        if deterministic:
            self.std = self.var = torch.zeros_like(self.mean)
        else:
            self.std = (0.5 * self.logvar).exp()
            self.var = self.logvar.exp()

    def sample(self, generator: torch.Generator | None = None, noise: Tensor | None = None) -> Tensor:
        """A draw (B,z,h,w), from the standard normal `noise` if given, else from `generator` or the global one."""
        if noise is None:
            noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.std * noise

    def mode(self) -> Tensor:
        """The most likely latent (B,z,h,w), the mean."""
        return self.mean

    def kl(self, other: DiagonalGaussianDistribution | None = None) -> Tensor:
        """KL divergence (B,) in nats to `other`, or to the standard normal; zeros when deterministic."""
        if self.deterministic:
            return self.mean.new_zeros(self.mean.shape[0])
        if other is None:
            terms = self.mean.square() + self.var - 1.0 - self.logvar
        else:
            distance = (self.mean - other.mean).square()
            terms = (distance + self.var) / other.var - 1.0 - self.logvar + other.logvar
        return 0.5 * terms.sum(dim=IMAGE_DIMS)

    def nll(self, sample: Tensor, dims: tuple[int, ...] = IMAGE_DIMS) -> Tensor:
        """Negative log-likelihood of `sample` in nats, summed over `dims`; zeros (B,) when deterministic."""
        if self.deterministic:
            return self.mean.new_zeros(self.mean.shape[0])
        terms = math.log(2.0 * math.pi) + self.logvar + (sample - self.mean).square() / self.var
        return 0.5 * terms.sum(dim=tuple(dims))


def normal_kl(mean1: Tensor | float, logvar1: Tensor | float, mean2: Tensor | float, logvar2: Tensor | float) -> Tensor:
    """Elementwise KL divergence in nats between normals given by mean and log-variance; numbers and tensors broadcast.

    Raises TypeError when no argument is a tensor.
    """
    like = next((value for value in (mean1, logvar1, mean2, logvar2) if isinstance(value, Tensor)), None)
    if like is None:
        raise TypeError("normal_kl needs at least one tensor")
    logvar1, logvar2 = (torch.as_tensor(value, dtype=like.dtype, device=like.device) for value in (logvar1, logvar2))
    distance = (mean1 - mean2) ** 2 * torch.exp(-logvar2)
    return 0.5 * (logvar2 - logvar1 + torch.exp(logvar1 - logvar2) + distance - 1.0)
