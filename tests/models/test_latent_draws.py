"""Latents drawn from the stored statistics of a run: the mixture's moments, lifted by the public directions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ldm.checkpoint import checkpoint_metadata, read_checkpoint
from ldm.checkpoint.metadata import made_from
from ldm.errors import UserError
from ldm.models.diffusion.latent_draws import LatentDraws, write_half
from ldm.privacy.statistics import ClassMixture, Frame
from tests import tiny

SHAPE = (2, 2, 2)


@pytest.fixture
def draws() -> LatentDraws:
    """Two classes, one Gaussian each, in three directions of eight numbers."""
    torch.manual_seed(0)
    frame = Frame.fit(torch.randn(50, 8), 3)
    means, factors = torch.randn(2, 2, 1, 3, dtype=torch.float64)[0], torch.randn(2, 1, 3, 3, dtype=torch.float64)
    mixture = ClassMixture(torch.tensor([0.5, 0.5]), torch.ones(2, 1, dtype=torch.float64), means, factors)
    return LatentDraws.of(mixture, frame, SHAPE)


def test_draws_have_the_moments_of_the_mixture_in_the_latents(draws: LatentDraws) -> None:
    rows = draws.draw(torch.ones(40_000, dtype=torch.long), torch.Generator().manual_seed(1)).flatten(1).double()
    wide = draws.lift.T @ draws.mixture.factors[1, 0]
    assert torch.allclose(rows.mean(dim=0), draws.centre + draws.lift.T @ draws.mixture.means[1, 0], atol=0.05)
    assert torch.allclose(torch.cov(rows.T), wide @ wide.T, atol=0.05 * float((wide @ wide.T).diagonal().max()))
    with pytest.raises(UserError, match="statistics of 2 classes"):
        draws.draw(torch.tensor([2]))


def test_the_file_gives_the_same_draws_and_carries_the_account(draws: LatentDraws, tmp_path: Path) -> None:
    path, labels = tmp_path / "draws.safetensors", torch.tensor([0, 1, 1])
    draws.save(path, {"plan": {"delta": 1e-5}, "ledger": {}})
    again = LatentDraws.read(path)
    assert again.shape == SHAPE
    first, second = (one.draw(labels, torch.Generator().manual_seed(2)) for one in (draws, again))
    assert first.shape == (3, *SHAPE) and torch.equal(first, second)
    assert checkpoint_metadata(read_checkpoint(path), "privacy")["plan"] == {"delta": 1e-5}
    with pytest.raises(UserError, match="holds no released statistics"):
        LatentDraws.read(tiny.public_checkpoint(tmp_path / "public.ckpt"))


def test_cells_that_share_factors_are_stored_so(draws: LatentDraws, tmp_path: Path) -> None:
    path, labels = tmp_path / "draws.safetensors", torch.arange(40) % 2
    means = torch.randn(2, 4, 3, dtype=torch.float64)
    factors, weights = torch.randn(2, 2, 3, 3, dtype=torch.float64), torch.full((2, 4), 0.25, dtype=torch.float64)
    groups = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]])
    grouped = replace(draws, mixture=ClassMixture(draws.mixture.shares, weights, means, factors, groups))
    grouped.save(path, {})
    assert read_checkpoint(path)["state_dict"]["factors"].shape == (2, 2, 3, 3)
    write_half(path, tmp_path / "half.safetensors")
    first = grouped.draw(labels, torch.Generator().manual_seed(2))
    assert torch.equal(LatentDraws.read(path).draw(labels, torch.Generator().manual_seed(2)), first)
    half = LatentDraws.read(tmp_path / "half.safetensors").draw(labels, torch.Generator().manual_seed(2))
    torch.testing.assert_close(half, first, rtol=0, atol=2e-3 * float(first.abs().max()))
    for wrong in (groups + 1, groups - 1, groups[:, :2], groups.double()):
        replace(grouped, mixture=replace(grouped.mixture, groups=wrong)).save(path, {})
        with pytest.raises(UserError, match="groups of cells"):
            LatentDraws.read(path)


def test_half_precision_gives_nearly_the_same_draws_under_the_same_account(draws: LatentDraws, tmp_path: Path) -> None:
    path, small, labels = tmp_path / "draws.safetensors", tmp_path / "half.safetensors", torch.arange(200) % 2
    draws.save(path, {"plan": {"delta": 1e-5}, "ledger": {}})
    write_half(path, small)
    assert read_checkpoint(small)["state_dict"]["factors"].dtype == torch.float16
    again = LatentDraws.read(small)
    first, second = (one.draw(labels, torch.Generator().manual_seed(2)) for one in (draws, again))
    torch.testing.assert_close(second, first, rtol=0, atol=2e-3 * float(first.abs().max()))
    assert not torch.equal(first, second)
    assert made_from(read_checkpoint(small)) == made_from(read_checkpoint(path)), "the digest that the card lists"
    assert checkpoint_metadata(read_checkpoint(small), "privacy")["plan"] == {"delta": 1e-5}
    mixture = replace(draws.mixture, factors=draws.mixture.factors * 1e9)
    replace(draws, mixture=mixture).save(path, {})
    with pytest.raises(UserError, match="beyond half precision"):
        write_half(path, small)
