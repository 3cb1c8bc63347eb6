"""`Sampler`: the sampling loop that DDIM, PLMS and DPM-Solver share, from noise down a grid of timesteps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.errors import UserError
from ldm.models.diffusion.guidance import guided_noise
from ldm.models.diffusion.protocols import DiffusionModel
from ldm.modules.diffusionmodules.util import make_ddim_sampling_parameters, make_ddim_timesteps

#: Ascending timesteps (S,) in [0, T).
Timesteps = Sequence[int] | np.ndarray[Any, Any]

#: (x_t, index of t in the grid) -> the noise predicted in x_t
Predict = Callable[[Tensor, int], Tensor]

#: (x_t, index of t in the grid) -> x at the next lower timestep, and the estimate of x_0
Step = Callable[[Tensor, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class DDIMGrid:
    """The visited timesteps (S,) in ascending order, and the constants of the step that starts at each of them.

    Notation of Song et al. 2021, with tau the sub-sequence of timesteps: ``timesteps`` is tau, ``alphas`` is
    alpha_{tau_i}, ``alphas_prev`` is alpha_{tau_{i-1}}, ``sigmas`` is sigma_{tau_i}. Their alpha is the cumulative
    product that Ho et al. write with a bar.
    """

    timesteps: np.ndarray[Any, Any]
    alphas: np.ndarray[Any, Any]
    alphas_prev: np.ndarray[Any, Any]
    sigmas: np.ndarray[Any, Any]

    @classmethod
    def make(cls, alphas_cumprod: Tensor, steps: int, eta: float, timesteps: Timesteps | None = None) -> DDIMGrid:
        """Choose ``steps`` in [1, T] timesteps, or take the given ascending ones.

        ``eta`` in [0, 1] goes from deterministic to ancestral noise.
        """
        if not 0.0 <= eta <= 1.0:
            raise UserError(f"eta: {eta} is outside [0, 1]; 0 is deterministic, 1 adds the noise of ancestral sampling")
        levels = alphas_cumprod.detach().cpu().numpy()
        chosen = (
            timesteps if timesteps is not None else make_ddim_timesteps("uniform", steps, len(levels), verbose=False)
        )
        visited = np.asarray(chosen)
        sigmas, alphas, previous = make_ddim_sampling_parameters(levels, visited, eta, verbose=False)
        return cls(visited, np.asarray(alphas), np.asarray(previous), np.asarray(sigmas))

    def __len__(self) -> int:
        return len(self.timesteps)


class Sampler(ABC):
    """Samples a diffusion model in few steps. A subclass chooses the timesteps and takes the steps."""

    title = "sampling"

    def __init__(self, model: DiffusionModel):
        self.model = model
        self.ddpm_num_timesteps: int = getattr(model, "num_timesteps", 0)
        self._schedule: DDIMGrid | None = None

    def make_schedule(
        self, ddim_num_steps: int, ddim_discretize: str = "uniform", ddim_eta: float = 0.0, verbose: bool = False
    ) -> None:
        """Compute the tables of a schedule for inspection: ``ddim_timesteps``, ``ddim_alphas``, ``ddim_sigmas``, ...

        :meth:`sample` computes its own tables and does not need this call. Raises UserError for another discretization.
        """
        timesteps = None
        if ddim_discretize != "uniform":
            total = len(self.model.alphas_cumprod)
            timesteps = make_ddim_timesteps(ddim_discretize, ddim_num_steps, total, verbose=verbose)
        self._schedule = self.grid(ddim_num_steps, ddim_eta, timesteps)

    @property
    def ddim_timesteps(self) -> np.ndarray:
        """The visited timesteps of `make_schedule`, ascending (S,)."""
        return self._table().timesteps

    @property
    def ddim_alphas(self) -> np.ndarray:
        """The cumulative signal levels at the visited timesteps (S,)."""
        return self._table().alphas

    @property
    def ddim_alphas_prev(self) -> np.ndarray:
        """The cumulative signal levels one visited timestep earlier (S,)."""
        return self._table().alphas_prev

    @property
    def ddim_sigmas(self) -> np.ndarray:
        """The noise of each step (S,)."""
        return self._table().sigmas

    @property
    def ddim_sqrt_one_minus_alphas(self) -> np.ndarray:
        """sqrt(1 - ``ddim_alphas``) (S,)."""
        return np.sqrt(1.0 - self._table().alphas)

    def _table(self) -> DDIMGrid:
        if self._schedule is None:
            raise UserError("there is no schedule yet; call make_schedule(ddim_num_steps) first")
        return self._schedule

    @abstractmethod
    def grid(self, steps: int, eta: float, timesteps: Timesteps | None) -> DDIMGrid:
        """The timesteps to visit. Raises UserError for options that the method does not support."""

    @abstractmethod
    def stepper(self, grid: DDIMGrid, predict: Predict, temperature: float) -> Step:
        """The step function of one trajectory, which goes from the noisiest timestep down.

        The function may keep state of its trajectory, so every trajectory needs a new one.
        """

    @torch.no_grad()
    def sample(
        self,
        S: int,
        batch_size: int,
        shape: Sequence[int],
        conditioning: Any = None,
        *,
        eta: float = 0.0,
        timesteps: Timesteps | None = None,
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
        ``temperature`` scales the noise of a step, if the method adds noise.
        Raises UserError for steps outside [1, T], or an eta that the method cannot use.
        """
        if (mask is None) != (x0 is None):
            raise UserError("give both a mask and x0 (the content it keeps), or neither")
        model = self.model
        grid = self.grid(S, eta, timesteps)
        device = model.betas.device
        x = torch.randn((batch_size, *shape), device=device) if x_T is None else x_T
        kept: dict[str, list[Tensor]] = {"x_inter": [x], "pred_x0": [x]}

        def times(index: int) -> Tensor:
            return torch.full((batch_size,), int(grid.timesteps[index]), device=device, dtype=torch.long)

        def predict(state: Tensor, index: int) -> Tensor:
            return guided_noise(
                model, state, times(index), conditioning, unconditional_conditioning, unconditional_guidance_scale
            )

        step = self.stepper(grid, predict, temperature)
        steps = range(len(grid) - 1, -1, -1)
        for count, index in enumerate(tqdm(steps, desc=self.title, disable=not verbose)):
            if mask is not None and x0 is not None:
                x = model.q_sample(x0, times(index)) * mask + (1.0 - mask) * x
            x, estimate = step(x, index)
            if callback is not None:
                callback(count)
            if index % log_every_t == 0 or index == len(grid) - 1:
                kept["x_inter"].append(x)
                kept["pred_x0"].append(estimate)
        return x, kept
