"""PLMS sampling (Liu et al. 2022, arXiv 2202.09778): DDIM steps along noise extrapolated from earlier predictions."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ldm.errors import UserError
from ldm.models.diffusion.ddim import ddim_step
from ldm.models.diffusion.sampler import DDIMGrid, Predict, Sampler, Step, Timesteps

# Adams-Bashforth weights, newest prediction first, by the number of earlier predictions.
WEIGHTS = {
    1: (3 / 2, -1 / 2),
    2: (23 / 12, -16 / 12, 5 / 12),
    3: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def linear_multistep(eps: Tensor, earlier: Sequence[Tensor]) -> Tensor:
    """The extrapolated noise, from the prediction at x_t and one to three ``earlier`` ones, the newest first.

    Notation of Liu et al. 2022, equation 12: ``eps`` is e_t, ``earlier`` is e_{t+1}, e_{t+2}, e_{t+3}, and the result
    is e'_t. The weights sum to 1, so that with constant predictions the step is that of DDIM. Of more than three
    earlier predictions the newest three are used.
    """
    used = [eps, *earlier[:3]]
    weights = WEIGHTS[len(used) - 1]
    total = weights[0] * used[0]
    for weight, value in zip(weights[1:], used[1:], strict=True):
        total = total + weight * value
    return total


class PLMSSampler(Sampler):
    """Samples a diffusion model in few deterministic steps (``eta`` 0); see `Sampler.sample`.

    The first step runs the network twice, every other one once.
    """

    title = "PLMS"

    def grid(self, steps: int, eta: float, timesteps: Timesteps | None) -> DDIMGrid:
        if eta != 0:
            raise UserError(f"eta: {eta} adds noise, which PLMS cannot use; set eta to 0, or sample with DDIM")
        return DDIMGrid.make(self.model.alphas_cumprod, steps, 0.0, timesteps)

    def stepper(self, grid: DDIMGrid, predict: Predict, temperature: float) -> Step:
        earlier: list[Tensor] = []  # predictions of the previous steps, the newest first

        def advance(state: Tensor, eps: Tensor, index: int) -> tuple[Tensor, Tensor]:
            return ddim_step(state, eps, float(grid.alphas[index]), float(grid.alphas_prev[index]), 0.0, None)

        def step(x: Tensor, index: int) -> tuple[Tensor, Tensor]:
            eps = predict(x, index)
            if earlier:
                direction = linear_multistep(eps, earlier)
            else:  # no earlier prediction, so average the noise here and after a trial step
                probe, _ = advance(x, eps, index)
                direction = (eps + predict(probe, max(index - 1, 0))) / 2
            earlier[:] = [eps, *earlier[:2]]
            return advance(x, direction, index)

        return step
