"""PLMS sampling (Liu et al. 2022, arXiv 2202.09778): DDIM steps along noise extrapolated from earlier predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ldm.errors import UserError
from ldm.models.diffusion.ddim import DDIMGrid, ddim_step, guided_noise

# Adams-Bashforth weights, newest prediction first, by the number of earlier predictions.
WEIGHTS = {
    1: (3 / 2, -1 / 2),
    2: (23 / 12, -16 / 12, 5 / 12),
    3: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def linear_multistep(eps: Tensor, earlier: Sequence[Tensor]) -> Tensor:
    """The noise to step along, from the prediction here and one to three ``earlier`` ones, the newest first.

    The weights sum to 1: where the prediction does not change, the step is DDIM's. With more than three the newest
    three count.
    """
    used = [eps, *earlier[:3]]
    return sum(weight * value for weight, value in zip(WEIGHTS[len(used) - 1], used, strict=True))


class PLMSSampler:
    """Samples a diffusion model in few deterministic steps; ``sample`` has the arguments of `DDIMSampler`."""

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

        The first step runs the network twice, every other one once. ``temperature`` scales the noise of a step, of
        which there is none here. Result and other arguments: see `DDIMSampler.sample`.
        Raises UserError for steps outside [1, T] or eta other than 0.
        """
        if eta != 0:
            raise UserError(f"eta: {eta} adds noise, which PLMS cannot use; set eta to 0, or sample with DDIM")
        model = self.model
        grid = DDIMGrid.make(model.alphas_cumprod, S, 0.0, timesteps)
        device = model.betas.device
        x = torch.randn((batch_size, *shape), device=device) if x_T is None else x_T
        kept: dict[str, list[Tensor]] = {"x_inter": [x], "pred_x0": [x]}
        earlier: list[Tensor] = []

        def times(index: int) -> Tensor:
            return torch.full((batch_size,), int(grid.timesteps[index]), device=device, dtype=torch.long)

        def predict(state: Tensor, index: int) -> Tensor:
            return guided_noise(
                model, state, times(index), conditioning, unconditional_conditioning, unconditional_guidance_scale
            )

        def advance(state: Tensor, eps: Tensor, index: int) -> tuple[Tensor, Tensor]:
            return ddim_step(state, eps, float(grid.alphas[index]), float(grid.alphas_prev[index]), 0.0, None)

        steps = range(len(grid) - 1, -1, -1)
        for count, index in enumerate(tqdm(steps, desc="PLMS", disable=not verbose)):
            if mask is not None:
                x = model.q_sample(x0, times(index)) * mask + (1.0 - mask) * x
            eps = predict(x, index)
            if earlier:
                direction = linear_multistep(eps, earlier)
            else:  # no history yet: the mean of the noise here and where it leads
                probe, _ = advance(x, eps, index)
                direction = (eps + predict(probe, max(index - 1, 0))) / 2
            x, estimate = advance(x, direction, index)
            earlier = [eps, *earlier[:2]]
            if callback is not None:
                callback(count)
            if index % log_every_t == 0 or index == len(grid) - 1:
                kept["x_inter"].append(x)
                kept["pred_x0"].append(estimate)
        return x, kept
