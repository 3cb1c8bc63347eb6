"""The autoencoder's posterior."""

from __future__ import annotations

import pytest
import torch

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution, normal_kl
from tests import parity


def test_gaussian_numbers():
    entry = parity.entry("gaussian")
    inputs, outputs = parity.io(entry)
    q = DiagonalGaussianDistribution(inputs["moments"])
    fixed = DiagonalGaussianDistribution(inputs["moments"], deterministic=True)
    other = DiagonalGaussianDistribution(inputs["other"])
    got = {
        "mean": q.mean,
        "logvar": q.logvar,
        "std": q.std,
        "var": q.var,
        "mode": q.mode(),
        "kl": other.kl(),
        "kl_other": other.kl(DiagonalGaussianDistribution(inputs["other2"])),
        "nll": other.nll(inputs["x"]),
        "det_std": fixed.std,
    }
    assert set(got) == set(outputs)
    for name, value in got.items():
        parity.check(name, value, entry)


def test_normal_kl_numbers():
    entry = parity.entry("normal_kl")
    inputs, _ = parity.io(entry)
    parity.check("kl", normal_kl(**inputs), entry)
    parity.check("kl0", normal_kl(inputs["mean1"], inputs["logvar1"], 0.0, 0.0), entry)


def test_normal_kl_needs_a_tensor():
    with pytest.raises(TypeError):
        normal_kl(0.0, 0.0, 1.0, 1.0)


def test_samples():
    parameters = torch.cat((torch.full((1, 2, 50, 50), 3.0), torch.full((1, 2, 50, 50), 2.0).log() * 2), dim=1)
    q = DiagonalGaussianDistribution(parameters)
    draw = q.sample(torch.Generator().manual_seed(0))
    assert draw.mean().item() == pytest.approx(3.0, abs=0.1)
    assert draw.std().item() == pytest.approx(2.0, abs=0.1)
    assert torch.equal(draw, q.sample(torch.Generator().manual_seed(0)))
    noise = torch.randn_like(q.mean)
    torch.testing.assert_close(q.sample(noise=noise), 3.0 + 2.0 * noise)


def test_deterministic_distribution_is_its_mean():
    q = DiagonalGaussianDistribution(torch.randn(2, 4, 3, 3), deterministic=True)
    assert torch.equal(q.sample(), q.mean)
    assert torch.equal(q.kl(), torch.zeros(2))
    assert torch.equal(q.nll(torch.zeros(2, 2, 3, 3)), torch.zeros(2))
