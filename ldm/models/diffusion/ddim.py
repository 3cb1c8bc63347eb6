"""DDIM sampling (Song et al. 2021): the step as a pure function, and the lineage's `DDIMSampler` around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.errors import UserError
from ldm.modules.diffusionmodules.util import make_ddim_sampling_parameters, make_ddim_timesteps


@dataclass(frozen=True)
class DDIMGrid:
    """The visited timesteps, ascending (S,), and for each the signal levels and noise of the step that leaves it."""

    timesteps: np.ndarray
    alphas: np.ndarray
    alphas_prev: np.ndarray
    sigmas: np.ndarray

    @classmethod
    def make(cls, alphas_cumprod: Tensor, steps: int, eta: float, timesteps: Sequence[int] | None = None) -> DDIMGrid:
        """Choose ``steps`` in [1, T] timesteps, or take the given ascending ones.

        ``eta`` in [0, 1] goes from deterministic to ancestral noise.
        """
        if not 0.0 <= eta <= 1.0:
            raise UserError(f"eta: {eta} is outside [0, 1]; 0 is deterministic, 1 adds the noise of ancestral sampling")
        levels = alphas_cumprod.detach().cpu().numpy()
        if timesteps is None:
            timesteps = make_ddim_timesteps("uniform", steps, len(levels), verbose=False)
        visited = np.asarray(timesteps)
        sigmas, alphas, previous = make_ddim_sampling_parameters(levels, visited, eta, verbose=False)
        return cls(visited, np.asarray(alphas), np.asarray(previous), np.asarray(sigmas))

    def __len__(self) -> int:
        return len(self.timesteps)


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


def guided_noise(model: Any, x: Tensor, t: Tensor, cond: Any, uncond: Any = None, scale: float = 1.0) -> Tensor:
    """Predicted noise, with classifier-free guidance when ``uncond`` is given and ``scale`` is not 1.

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


class DDIMSampler:
    """Samples a diffusion model in few steps; ``sample`` has the arguments of the lineage."""

    def __init__(self, model: Any):
        self.model = model

    @torch.no_grad()
    def sample(
        self,
        S: int,
        batch_size: int,
        shape: Sequence[int],
        conditioning: Any = None,
        *,
        eta: float = 0.0,
        timesteps: Sequence[int] | None = None,
        x_T: Tensor | None = None,
        mask: Tensor | None = None,
        x0: Tensor | None = None,
        temperature: float = 1.0,
        unconditional_guidance_scale: float = 1.0,
        unconditional_conditioning: Any = None,
        log_every_t: int = 100,
        callback: Callable[[int], None] | None = None,
        verbose: bool = False,
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        """Draw ``batch_size`` latents of ``shape`` (C, H, W) in ``S`` steps, or at the given ``timesteps``.

        Returns the latents (B, C, H, W) and, every ``log_every_t`` steps, the states (``x_inter``) and the estimates
        of x_0 (``pred_x0``), both starting with the initial noise. ``mask`` (1 = keep) with ``x0`` keeps known content.
        Raises UserError for steps outside [1, T] or eta outside [0, 1].
        """
        model = self.model
        grid = DDIMGrid.make(model.alphas_cumprod, S, eta, timesteps)
        device = model.betas.device
        x = torch.randn((batch_size, *shape), device=device) if x_T is None else x_T
        kept: dict[str, list[Tensor]] = {"x_inter": [x], "pred_x0": [x]}
        steps = range(len(grid) - 1, -1, -1)
        for count, index in enumerate(tqdm(steps, desc="DDIM", disable=not verbose)):
            t = torch.full((batch_size,), int(grid.timesteps[index]), device=device, dtype=torch.long)
            if mask is not None:
                x = model.q_sample(x0, t) * mask + (1.0 - mask) * x
            eps = guided_noise(model, x, t, conditioning, unconditional_conditioning, unconditional_guidance_scale)
            sigma = float(grid.sigmas[index])
            noise = torch.randn_like(x) * temperature if sigma > 0 else None
            x, estimate = ddim_step(x, eps, float(grid.alphas[index]), float(grid.alphas_prev[index]), sigma, noise)
            if callback is not None:
                callback(count)
            if index % log_every_t == 0 or index == len(grid) - 1:
                kept["x_inter"].append(x)
                kept["pred_x0"].append(estimate)
        return x, kept
