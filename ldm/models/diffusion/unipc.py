"""UniPC sampling (Zhao et al. 2023, arXiv 2302.04867): a predictor and a corrector that share one formula.

The corrector uses the network's output at the predicted state, which the next step needs anyway. So a step costs one
run of the network, and its order is one higher than that of the predictor alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ldm.errors import UserError
from ldm.models.diffusion.dpm_solver import even_timesteps, half_log_snr
from ldm.models.diffusion.sampler import DDIMGrid, Predict, Sampler, Step, Timesteps

#: Order of the predictor; Zhao et al. use 2 with guidance, and 3 is unstable for strong guidance.
ORDER = 2

#: An estimate of x_0 (B, C, H, W), with the half log-SNR of the state that it was made from.
Estimate = tuple[float, Tensor]


def unipc_weights(ratios: Sequence[float], length: float) -> np.ndarray[Any, Any]:
    """The weights (p,) of the differences at ``ratios`` = r_1 ... r_p, with B(h) = e^h - 1, for data prediction.

    They solve R_p(h) a_p(h) B(h) = phi_p(h) of Zhao et al. 2023, theorem 3.1 and appendix A. ``length`` is h > 0. For
    p = 1 the weight is 1/2, their choice that does not depend on h.
    """
    if len(ratios) == 1:
        return np.array([0.5])
    scale = math.expm1(-length)
    wanted, phi, factorial = [], scale / -length - 1.0, 1.0
    for power in range(1, len(ratios) + 1):
        wanted.append(phi * factorial / scale)
        factorial *= power + 1
        phi = phi / -length - 1.0 / factorial
    system = np.vander(np.asarray(ratios, dtype=np.float64), increasing=True).T
    return np.linalg.solve(system, np.array(wanted))


def unipc_step(x: Tensor, alpha: float, alpha_to: float, x0: Tensor, others: Sequence[Estimate] = ()) -> Tensor:
    """The state at level ``alpha_to`` from ``x`` (B, C, H, W) at level ``alpha``; both levels in (0, 1).

    ``x0`` is the estimate at ``x``. ``others`` are estimates at other levels: earlier ones, and for the corrector the
    one at ``alpha_to`` itself. Without them the step is that of DDIM. Source: Zhao et al. 2023, equations 3 and 9 in
    the form of data prediction; the levels are the squares of the paper's alpha, and 1 minus them those of its sigma.
    """
    here = half_log_snr(alpha)
    length = half_log_snr(alpha_to) - here
    signal, decay = math.sqrt(alpha_to), math.expm1(-length)
    result = math.sqrt((1 - alpha_to) / (1 - alpha)) * x - signal * decay * x0
    if others:
        ratios = [(there - here) / length for there, _ in others]
        for weight, ratio, (_, other) in zip(unipc_weights(ratios, length), ratios, others, strict=True):
            result = result - (signal * decay * float(weight) / ratio) * (other - x0)
    return result


class UniPCSampler(Sampler):
    """Samples a diffusion model in few deterministic steps (``eta`` 0); see `Sampler.sample`.

    Without ``timesteps`` the grid is that of `even_timesteps`. The last steps are of lower order, as many as there are
    steps left.
    """

    title = "UniPC"

    def grid(self, steps: int, eta: float, timesteps: Timesteps | None) -> DDIMGrid:
        if eta != 0:
            raise UserError(f"eta: {eta} adds noise, which UniPC cannot use; set eta to 0, or sample with DDIM")
        levels = self.model.alphas_cumprod
        return DDIMGrid.make(levels, steps, 0.0, even_timesteps(levels, steps) if timesteps is None else timesteps)

    def stepper(self, grid: DDIMGrid, predict: Predict, temperature: float) -> Step:
        estimates: list[Estimate] = []  # of the previous states, the newest first
        before: tuple[Tensor, float, int] | None = None  # the previous state, its level, and the order of its step

        def step(x: Tensor, index: int) -> tuple[Tensor, Tensor]:
            nonlocal before
            alpha, alpha_prev = float(grid.alphas[index]), float(grid.alphas_prev[index])
            estimate = (x - math.sqrt(1 - alpha) * predict(x, index)) / math.sqrt(alpha)
            newest = (half_log_snr(alpha), estimate)
            if before is not None:
                state, level, order = before
                x = unipc_step(state, level, alpha, estimates[0][1], [*estimates[1:order], newest])
            order = min(ORDER, len(estimates) + 1, index + 1)
            estimates[:] = [newest, *estimates[: ORDER - 1]]
            before = (x, alpha, order)
            return unipc_step(x, alpha, alpha_prev, estimate, estimates[1:order]), estimate

        return step
