"""What the few-step samplers have in common: the loop, what it keeps, and the arguments of the lineage."""

from __future__ import annotations

import pytest
import torch

from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.dpm_solver import DPMSolverSampler
from ldm.models.diffusion.plms import PLMSSampler
from ldm.models.diffusion.sampler import Sampler
from ldm.models.diffusion.unipc import UniPCSampler
from tests.models.gaussian import Gaussian

SHAPE = (1, 2, 2)
every_sampler = pytest.mark.parametrize("kind", [DDIMSampler, PLMSSampler, DPMSolverSampler, UniPCSampler])


@every_sampler
def test_there_is_one_loop(kind):
    assert kind.sample is Sampler.sample


@every_sampler
def test_states_are_kept_at_the_start_and_every_so_many_steps(kind):
    start, counted = torch.randn(2, *SHAPE), []
    samples, kept = kind(Gaussian()).sample(7, 2, SHAPE, x_T=start, log_every_t=3, callback=counted.append)
    assert counted == list(range(7))
    assert len(kept["x_inter"]) == len(kept["pred_x0"]) == 4  # the noise, and after steps 6, 3 and 0
    assert torch.equal(kept["x_inter"][0], start) and torch.equal(kept["x_inter"][-1], samples)


@every_sampler
def test_a_sampler_remembers_nothing_of_an_earlier_call(kind):
    start, sampler = torch.randn(2, *SHAPE), kind(Gaussian())
    first, _ = sampler.sample(5, 2, SHAPE, x_T=start)
    sampler.sample(3, 2, SHAPE)
    again, _ = sampler.sample(5, 2, SHAPE, x_T=start)
    assert torch.equal(first, again)


@every_sampler
def test_given_timesteps_are_visited_from_the_last(kind):
    model, seen = Gaussian(), []
    inner = model.apply_model
    model.apply_model = lambda x, t, cond: seen.append(int(t[0])) or inner(x, t, cond)
    kind(model).sample(0, 2, SHAPE, timesteps=[10, 400, 900])
    assert list(dict.fromkeys(seen)) == [900, 400, 10]


@every_sampler
def test_known_content_is_noised_to_the_level_of_the_step(kind):
    model, seen = Gaussian(), []
    inner = model.apply_model
    model.apply_model = lambda x, t, cond: seen.append((x, int(t[0]))) or inner(x, t, cond)
    known = torch.full((2, *SHAPE), 5.0)
    kind(model).sample(3, 2, SHAPE, mask=torch.ones(2, *SHAPE), x0=known)
    x, t = seen[0]
    assert torch.allclose(x, known * model.alphas_cumprod[t].sqrt())
