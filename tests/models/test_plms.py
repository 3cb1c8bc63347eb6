"""PLMS, and DDIM on text: the numbers of the lineage, and what the method promises."""

from __future__ import annotations

import pytest
import torch

from ldm.errors import UserError
from ldm.models.diffusion.ddim import DDIMSampler
from ldm.models.diffusion.plms import PLMSSampler, linear_multistep
from tests import parity
from tests.models.gaussian import Gaussian


def built(entry):
    """The case's diffusion model, without its first stage, which a trajectory does not use."""
    model = entry["params"]["model"]
    params = {**model["params"], "first_stage_config": {"target": "torch.nn.Identity"}}
    weights = [item for item in entry["weights"] if item["as"] != "first_stage_model."]
    return parity.build({**entry, "class": model["class"], "params": params, "weights": weights}, strict=False)


@pytest.mark.parametrize(
    "entry", [*parity.entries("sampling", "plms"), *parity.entries("sampling", "ddim.text")], ids=parity.name
)
def test_trajectories(entry):
    model, (inputs, _) = built(entry), parity.io(entry)
    sampler = parity.find_class(entry)(model)
    guidance = {}
    if "uc" in inputs:
        guidance = {
            "unconditional_guidance_scale": entry["params"]["unconditional_guidance_scale"],
            "unconditional_conditioning": inputs["uc"],
        }
    samples, kept = sampler.sample(
        S=entry["params"]["S"],
        batch_size=2,
        shape=inputs["x_T"].shape[1:],
        conditioning=inputs["c"],
        x_T=inputs["x_T"],
        eta=0.0,
        log_every_t=1,
        verbose=False,
        **guidance,
    )
    parity.check("x_inter", torch.stack(kept["x_inter"]), entry)
    parity.check("pred_x0", torch.stack(kept["pred_x0"]), entry)
    parity.check("samples", samples, entry)


@pytest.mark.parametrize("history", [1, 2, 3])
def test_extrapolation_is_exact_for_polynomials(history):
    # Adams-Bashforth of order k integrates polynomials of degree k-1 over the coming step without error
    for degree in range(history + 1):
        values = [torch.tensor(float(-age) ** degree if age else float(degree == 0)) for age in range(history + 1)]
        assert float(linear_multistep(values[0], values[1:])) == pytest.approx(1 / (degree + 1), abs=1e-6)


def test_extrapolation_uses_the_newest_three():
    eps, earlier = torch.ones(1), [torch.ones(1)] * 3
    assert torch.equal(linear_multistep(eps, [*earlier, torch.full((1,), 9.0)]), linear_multistep(eps, earlier))


def test_closer_to_the_flow_than_ddim():
    model, x = Gaussian(), torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    fine, _ = DDIMSampler(model).sample(1000, 4, (1, 2, 2), x_T=x)
    rough, _ = DDIMSampler(model).sample(20, 4, (1, 2, 2), x_T=x)
    better, _ = PLMSSampler(model).sample(20, 4, (1, 2, 2), x_T=x)
    assert (better - fine).abs().max() < 0.2 * (rough - fine).abs().max()


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_runs_the_network_once_a_step_and_once_more(steps):
    model = Gaussian()
    samples, kept = PLMSSampler(model).sample(steps, 2, (1, 2, 2))
    assert model.calls == steps + 1
    assert samples.shape == (2, 1, 2, 2) and samples.isfinite().all()
    assert torch.equal(kept["x_inter"][-1], samples)


def test_known_content_is_kept_until_the_last_step():
    model, known = Gaussian(), torch.full((2, 1, 2, 2), 5.0)
    seen = []
    inner = model.apply_model
    model.apply_model = lambda x, t, cond: seen.append((x[:, :, 0], int(t[0]))) or inner(x, t, cond)
    mask = torch.tensor([[1.0, 1.0], [0.0, 0.0]]).expand(2, 1, 2, 2)
    PLMSSampler(model).sample(5, 2, (1, 2, 2), mask=mask, x0=known)
    for x, t in (seen[0], *seen[2:]):  # the second call is the probe of the first step
        assert torch.allclose(x, 5.0 * model.alphas_cumprod[t].sqrt().expand_as(x))


def test_refusals():
    sampler = PLMSSampler(Gaussian())
    with pytest.raises(UserError, match="set eta to 0"):
        sampler.sample(5, 2, (1, 2, 2), eta=0.5)
    with pytest.raises(UserError, match="0 DDIM steps"):
        sampler.sample(0, 2, (1, 2, 2))
