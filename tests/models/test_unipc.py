"""UniPC: its order on an equation that is solved in closed form, the known flow, and the solver of another library."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from ldm.errors import UserError
from ldm.models.diffusion.ddim import DDIMSampler, ddim_step
from ldm.models.diffusion.dpm_solver import DPMSolverSampler, dpm_step, half_log_snr
from ldm.models.diffusion.unipc import Estimate, UniPCSampler, unipc_step, unipc_weights
from tests.models.gaussian import Gaussian


def start(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(seed))


def test_without_other_estimates_the_step_is_that_of_ddim() -> None:
    x, eps = start(), start(1)
    wanted, estimate = ddim_step(x, eps, 0.3, 0.6, 0.0, None)
    torch.testing.assert_close(unipc_step(x, 0.3, 0.6, estimate), wanted)
    constant = [(half_log_snr(0.2), estimate), (half_log_snr(0.6), estimate)]
    torch.testing.assert_close(unipc_step(x, 0.3, 0.6, estimate, constant), wanted)


def test_the_second_order_predictor_is_that_of_dpm_solver_to_second_order() -> None:
    # both hold for small steps; UniPC weighs the change by (1 - e^-h) / 2 * h / (1 - e^-h) = the same h / 2
    x, x0, earlier = start(), start(1), start(2)
    alpha, alpha_prev, before = 0.3, 0.31, 0.29
    last = half_log_snr(alpha) - half_log_snr(before)
    wanted = dpm_step(x, x0, alpha, alpha_prev, earlier, last)
    got = unipc_step(x, alpha, alpha_prev, x0, [(half_log_snr(before), earlier)])
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("ratios", [[-1.0, 1.0], [-0.7, 1.0], [-2.0, -1.0, 1.0]])
def test_weights_integrate_polynomials_exactly(ratios: list[float]) -> None:
    # the flow is x_to = .. + alpha_to * integral of e^(lambda - lambda_to) x0(lambda); monomials of x0 up to degree p
    length, here = 0.4, -0.3
    alpha, alpha_to = (1 / (1 + math.exp(-2 * value)) for value in (here, here + length))
    for degree in range(1, len(ratios) + 1):
        values = torch.linspace(here, here + length, 200_001, dtype=torch.float64)
        integral = torch.trapezoid(torch.exp(values - here - length) * (values - here) ** degree, values)
        others = [(here + r * length, torch.tensor((r * length) ** degree, dtype=torch.float64)) for r in ratios]
        zero = torch.tensor(0.0, dtype=torch.float64)
        got = unipc_step(zero, alpha, alpha_to, zero, others)
        torch.testing.assert_close(got, math.sqrt(alpha_to) * integral, rtol=1e-7, atol=0)
    assert len(unipc_weights(ratios, length)) == len(ratios)


def solved(steps: int, corrected: bool) -> torch.Tensor:
    """The flow of N(0, 1/4) over a fixed range of log-SNR in equal steps, from x = 1, in float64."""
    variance, first, last = 0.25, -2.0, 2.0

    def level(value: float) -> float:
        return 1 / (1 + math.exp(-2 * value))

    def estimate(x: torch.Tensor, value: float) -> Estimate:
        alpha = level(value)
        return value, math.sqrt(alpha) * variance / (alpha * variance + 1 - alpha) * x

    def deviation(value: float) -> float:
        return math.sqrt(level(value) * variance + 1 - level(value))

    x = torch.ones((), dtype=torch.float64)
    nodes = [first + (last - first) * k / steps for k in range(steps + 1)]
    # an exact earlier estimate, so that the first step is of full order as well
    before = first - (nodes[1] - nodes[0])
    estimates = [estimate(x * deviation(before) / deviation(first), before)]
    for here, there in itertools.pairwise(nodes):
        newest = estimate(x, here)
        moved = unipc_step(x, level(here), level(there), newest[1], estimates[:1])
        if corrected:
            others = [estimates[0], estimate(moved, there)]
            moved = unipc_step(x, level(here), level(there), newest[1], others)
        estimates, x = [newest], moved
    return x - deviation(last) / deviation(first)


@pytest.mark.parametrize(("corrected", "order"), [(False, 2), (True, 3)])
def test_order_of_convergence(corrected: bool, order: int) -> None:
    errors = [abs(float(solved(steps, corrected))) for steps in (20, 40, 80)]
    orders = [math.log2(one / two) for one, two in itertools.pairwise(errors)]
    assert all(abs(found - order) < 0.3 for found in orders), orders


def error(kind: Any, steps: int) -> float:
    """Distance of a sample to the end of the flow, relative to the largest value there."""
    model, x = Gaussian(), start()
    end = model.flow_end(x)
    return float((kind(model).sample(steps, 4, (1, 2, 2), x_T=x)[0] - end).abs().max() / end.abs().max())


@pytest.mark.parametrize("steps", [8, 12, 20])
def test_closer_to_the_end_of_the_flow_than_ddim(steps: int) -> None:
    assert error(UniPCSampler, steps) < 0.1 * error(DDIMSampler, steps)


def test_closer_than_dpm_solver_where_both_have_converged() -> None:
    assert error(UniPCSampler, 30) < 0.5 * error(DPMSolverSampler, 30) < 0.005


@pytest.mark.parametrize("steps", [1, 2, 3, 1000])
def test_any_number_of_steps_and_one_call_a_step(steps: int) -> None:
    model = Gaussian()
    samples, kept = UniPCSampler(model).sample(steps, 2, (1, 2, 2), log_every_t=1)
    assert model.calls == steps and len(kept["x_inter"]) == steps + 1
    assert samples.isfinite().all()


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_equal_to_diffusers(steps: int) -> None:
    diffusers = pytest.importorskip("diffusers")
    model, x = Gaussian(), start()
    ours, _ = UniPCSampler(model).sample(steps, 4, (1, 2, 2), x_T=x)
    theirs = diffusers.UniPCMultistepScheduler(
        trained_betas=model.betas.numpy(), solver_order=2, solver_type="bh2", final_sigmas_type="sigma_min"
    )
    theirs.set_timesteps(steps)
    grid = UniPCSampler(model).grid(steps, 0.0, None)
    levels = [*grid.alphas[::-1], float(grid.alphas_prev[0])]
    theirs.sigmas = torch.tensor([math.sqrt((1 - level) / level) for level in levels])
    theirs.timesteps = torch.tensor(grid.timesteps[::-1].copy())
    for t in theirs.timesteps:
        eps = model.apply_model(x, t.repeat(4), None)
        x = theirs.step(eps, t, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-5)


def test_refusals() -> None:
    with pytest.raises(UserError, match="set eta to 0"):
        UniPCSampler(Gaussian()).sample(5, 2, (1, 2, 2), eta=0.5)
