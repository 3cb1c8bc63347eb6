"""`guided_noise`: the noise that a diffusion model predicts in x_t, with classifier-free guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

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
