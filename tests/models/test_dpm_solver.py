"""DPM-Solver++(2M): order, agreement with DDIM, and the flow that is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ldm.errors import UserError
from ldm.models.diffusion.ddim import DDIMSampler, ddim_step
from ldm.models.diffusion.dpm_solver import DPMSolverSampler, dpm_step, even_timesteps, half_log_snr
from tests.models.gaussian import Gaussian


def start(seed=0):
    return torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(seed))


def test_first_order_is_ddim():
    x, eps = start(), start(1)
    alpha, alpha_prev = 0.3, 0.6
    wanted, estimate = ddim_step(x, eps, alpha, alpha_prev, 0.0, None)
    torch.testing.assert_close(dpm_step(x, estimate, alpha, alpha_prev), wanted)
    # nor does a history that says the estimate is constant change anything
    torch.testing.assert_close(dpm_step(x, estimate, alpha, alpha_prev, estimate, 0.5), wanted)


def test_second_order_follows_a_changing_estimate():
    # data estimates linear in lambda: the correction is half of what they change over the step
    x, slope, alpha, alpha_prev = torch.zeros(1), 2.0, 0.3, 0.6
    length = half_log_snr(alpha_prev) - half_log_snr(alpha)
    got = dpm_step(x, torch.ones(1), alpha, alpha_prev, torch.ones(1) - slope * 0.4, 0.4)
    torch.testing.assert_close(got, dpm_step(x, torch.ones(1) + slope * length / 2, alpha, alpha_prev))


def test_grid():
    levels = Gaussian().alphas_cumprod
    for steps in (1, 2, 7, 50, 200, 999, 1000):
        grid = even_timesteps(levels, steps)
        assert len(grid) == steps and (np.diff(grid) > 0).all() and grid[0] >= 0 and grid[-1] == 999
    snr = [half_log_snr(float(levels[index])) for index in even_timesteps(levels, 7)]
    assert np.ptp(np.diff(snr)) < 0.3 * np.abs(np.diff(snr)).mean()
    for steps in (0, 1001):
        with pytest.raises(UserError, match="choose from 1 to 1000"):
            even_timesteps(levels, steps)


@pytest.mark.parametrize("steps", [10, 20, 50])
def test_closer_to_the_end_of_the_flow_than_ddim(steps):
    model, x = Gaussian(), start()
    end = model.flow_end(x)
    ddim, _ = DDIMSampler(model).sample(steps, 4, (1, 2, 2), x_T=x)
    better, _ = DPMSolverSampler(model).sample(steps, 4, (1, 2, 2), x_T=x)
    assert (better - end).abs().max() < 0.2 * (ddim - end).abs().max()
    assert (better - end).abs().max() < 0.01 * end.abs().max()


def test_close_to_a_fine_ddim_trajectory():
    model, x = Gaussian(), start()
    fine, _ = DDIMSampler(model).sample(1000, 4, (1, 2, 2), x_T=x)
    rough, _ = DDIMSampler(model).sample(20, 4, (1, 2, 2), x_T=x)
    better, _ = DPMSolverSampler(model).sample(20, 4, (1, 2, 2), x_T=x)
    assert (better - fine).abs().max() < 0.2 * (rough - fine).abs().max()


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_any_number_of_steps(steps):
    model = Gaussian()
    samples, kept = DPMSolverSampler(model).sample(steps, 2, (1, 2, 2), log_every_t=1)
    assert model.calls == steps and len(kept["x_inter"]) == steps + 1
    assert samples.shape == (2, 1, 2, 2) and samples.isfinite().all()


def test_refusals():
    with pytest.raises(UserError, match="set eta to 0"):
        DPMSolverSampler(Gaussian()).sample(5, 2, (1, 2, 2), eta=0.5)
