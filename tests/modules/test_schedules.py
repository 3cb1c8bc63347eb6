"""Beta schedules, DDIM time grids and tables."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ldm.errors import UserError
from ldm.modules.diffusionmodules.util import (
    extract_into_tensor,
    make_beta_schedule,
    make_ddim_sampling_parameters,
    make_ddim_timesteps,
    noise_like,
    timestep_embedding,
)
from tests import parity

BETA_PARAMS = {"linear_start", "linear_end", "cosine_s"}


@pytest.mark.parametrize("entry", parity.entries("schedule"), ids=parity.name)
def test_betas_and_their_products(entry):
    params = entry["params"]
    options = {key: value for key, value in params.items() if key in BETA_PARAMS}
    betas = make_beta_schedule(params.get("beta_schedule", "linear"), params.get("timesteps", 1000), **options)
    assert betas.dtype == np.float64
    parity.check("betas", torch.tensor(betas, dtype=torch.float32), entry)
    parity.check("alphas_cumprod", torch.tensor(np.cumprod(1 - betas), dtype=torch.float32), entry)


@pytest.mark.parametrize("entry", parity.entries("ddim_tables"), ids=parity.name)
def test_ddim_tables(entry):
    params = entry["params"]
    inputs, outputs = parity.io(entry)
    steps, total = params["num_ddim_timesteps"], params["num_ddpm_timesteps"]
    timesteps = outputs["timesteps"].numpy()
    if len(timesteps) == steps:
        got = make_ddim_timesteps(params["ddim_discr_method"], steps, total)
        parity.check("timesteps", torch.tensor(got), entry)
    else:
        assert total % steps, "the public code returns another number of steps only where the stride is not whole"
    tables = make_ddim_sampling_parameters(inputs["alphas_cumprod"].numpy(), timesteps, params["eta"])
    for name, table in zip(("sigmas", "alphas", "alphas_prev"), tables, strict=True):
        parity.check(name, torch.tensor(table), entry)


@pytest.mark.parametrize("method", ["uniform", "quad"])
@pytest.mark.parametrize("total", [1, 2, 7, 1000])
def test_every_step_count_gives_that_many_rising_steps(method, total):
    for steps in range(1, total + 1):
        grid = make_ddim_timesteps(method, steps, total)
        assert grid.dtype == np.int64 and len(grid) == steps
        assert grid[0] >= 0 and grid[-1] <= total - 1
        assert np.all(np.diff(grid) > 0)


def test_the_original_grid_is_kept_where_the_stride_is_whole():
    for steps in (divisor for divisor in range(1, 1000) if 1000 % divisor == 0):
        want = np.arange(0, 1000, 1000 // steps) + 1
        assert np.array_equal(make_ddim_timesteps("uniform", steps, 1000), want)


@given(st.integers(1, 400), st.data())
def test_uniform_strides_differ_by_at_most_one(total, data):
    steps = data.draw(st.integers(1, total))
    strides = set(np.diff(make_ddim_timesteps("uniform", steps, total)).tolist())
    assert strides <= {total // steps, -(-total // steps)}


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 3, 27, 251, 333, 501, 999, 1000])
def test_tables_are_finite_for_step_counts_that_used_to_fail(steps, eta):
    products = np.cumprod(1 - make_beta_schedule("linear", 1000))
    tables = make_ddim_sampling_parameters(products, make_ddim_timesteps("uniform", steps, 1000), eta)
    assert all(len(table) == steps and np.all(np.isfinite(table)) for table in tables)


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_step_counts_outside_the_diffusion_are_refused(steps):
    with pytest.raises(UserError, match="from 1 to 1000"):
        make_ddim_timesteps("uniform", steps, 1000)


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match="did you mean 'cosine'"):
        make_beta_schedule("cosin", 10)
    with pytest.raises(UserError, match="did you mean 'quad'"):
        make_ddim_timesteps("quads", 10, 100)
    with pytest.raises(UserError, match="at least 1 step"):
        make_beta_schedule("linear", 0)


def test_extract_picks_one_entry_per_row():
    values = torch.arange(10.0)
    got = extract_into_tensor(values, torch.tensor([3, 0]), (2, 3, 4, 4))
    assert got.shape == (2, 1, 1, 1) and got.flatten().tolist() == [3.0, 0.0]


def test_timestep_embedding_numbers():
    entry = parity.entry("timestep_embedding")
    inputs, outputs = parity.io(entry)
    for name in outputs:
        parity.check(name, timestep_embedding(inputs["t"], int(name.removeprefix("e"))), entry)


@pytest.mark.parametrize("dim", [32, 33, 192])
def test_timestep_embedding_is_close_to_float64(dim):
    times = torch.tensor([0, 1, 2, 17, 500, 999])
    half = dim // 2
    angles = times.double()[:, None] * 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    want = nn.functional.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, dim % 2))
    # With u = 2**-24: an angle is t * exp(-x). float32 rounds x three times (3ux), exp to one ulp (2u) and the product
    # once (u), so the angle is off by at most t * exp(-x) * (3x + 3) * u <= 3ut, and cos and sin add one ulp (2u).
    # That holds on every processor: 3ut + 2u < 2e-7 * (1 + t).
    assert ((timestep_embedding(times, dim) - want).abs() <= 2e-7 * (1 + times)[:, None]).all()


def test_timestep_embedding_layout():
    got = timestep_embedding(torch.tensor([0, 5]), 7)
    assert got.shape == (2, 7) and got.dtype == torch.float32
    assert got[0].tolist() == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert got[1, 0].item() == pytest.approx(np.cos(5.0), abs=1e-6)
    assert timestep_embedding(torch.tensor([4]), 3, repeat_only=True).tolist() == [[4, 4, 4]]


def test_noise_like_repeats_one_draw_and_follows_its_generator():
    generator = torch.Generator().manual_seed(1)
    one = noise_like((3, 2, 2), "cpu", repeat=True, generator=generator)
    assert torch.equal(one[0], one[2])
    other = noise_like((3, 2, 2), "cpu", generator=torch.Generator().manual_seed(1))
    assert not torch.equal(other[0], other[2])
    assert torch.equal(other, noise_like((3, 2, 2), "cpu", generator=torch.Generator().manual_seed(1)))
