"""`guided_noise`: the noise that a diffusion model predicts in x_t, with classifier-free guidance or autoguidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.models.diffusion.protocols import DiffusionModel


def guided_noise(
    model: DiffusionModel, x: Tensor, t: Tensor, cond: Any, uncond: Any = None, scale: float = 1.0
) -> Tensor:
    """Predicted noise (B, C, H, W) in x_t at timesteps ``t`` (B,).

    With classifier-free guidance when ``uncond`` is given and ``scale`` is not 1. ``cond`` and ``uncond`` are encoded
    conditions of B records.

    Source: Ho and Salimans 2022, equation 6, in the lineage's form uncond + scale * (cond - uncond).
    """
    if uncond is None or scale == 1.0:
        output = model.apply_model(x, t, cond)
    else:
        both = model.apply_model(torch.cat([x, x]), torch.cat([t, t]), _stack(uncond, cond))
        without, with_condition = both.chunk(2)
        output = without + scale * (with_condition - without)
    if model.parameterization == "eps":
        return output
    shape = (-1, *[1] * (x.ndim - 1))
    signal = model.sqrt_alphas_cumprod[t].reshape(shape)
    return (x - signal * output) / model.sqrt_one_minus_alphas_cumprod[t].reshape(shape)


def _stack(first: Any, second: Any) -> Any:
    if isinstance(first, Mapping):
        return {key: _stack(first[key], second[key]) for key in first}
    if isinstance(first, (list, tuple)):
        return [_stack(a, b) for a, b in zip(first, second, strict=True)]
    return torch.cat([first, second])


class Autoguided:
    """A `DiffusionModel` whose output leads away from that of a weaker model of the same latents and schedule.

    Its condition is the pair of the two models' encoded conditions. ``scale`` 1 is the model alone. Source: Karras et
    al. 2024 (arXiv 2406.02507), equation 4, with the weaker model's output in the place of the unconditional one.
    """

    def __init__(self, model: DiffusionModel, guide: DiffusionModel, scale: float) -> None:
        if model.parameterization != guide.parameterization or not torch.equal(
            model.alphas_cumprod, guide.alphas_cumprod
        ):
            raise UserError("--guide_with: the two models have another noise schedule or prediction target")
        self.model, self.guide, self.scale = model, guide, scale
        self.betas, self.alphas_cumprod = model.betas, model.alphas_cumprod
        self.sqrt_alphas_cumprod = model.sqrt_alphas_cumprod
        self.sqrt_one_minus_alphas_cumprod = model.sqrt_one_minus_alphas_cumprod
        self.num_timesteps, self.parameterization = model.num_timesteps, model.parameterization

    def apply_model(self, x_noisy: Tensor, t: Tensor, cond: Any = None) -> Tensor:
        """The guided output (B, C, H, W)."""
        own, others = cond
        output = self.model.apply_model(x_noisy, t, own)
        if self.scale == 1.0:
            return output
        weaker = self.guide.apply_model(x_noisy, t, others)
        return weaker + self.scale * (output - weaker)

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """A draw of x_t, as of the model."""
        return self.model.q_sample(x_start, t, noise)
