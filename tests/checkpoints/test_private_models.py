"""Every private model in checkpoints/private: its folder verifies, its epsilon stands, and it samples."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldm.checkpoint import read_checkpoint
from ldm.inference import SamplingOptions, draw_samples, load_model
from ldm.privacy.card import ReleaseCard
from ldm.reports.release_folder import ReleaseFolder
from ldm.reports.verification import verify_release

FOLDER = Path(__file__).parents[2] / "checkpoints" / "private"
MODELS = sorted(path for path in FOLDER.glob("*") if path.is_dir())
LARGEST = 5e6  # bytes of a model in the repository, its statistics included
SHIPPED = 40e6  # bytes of everything in checkpoints
NONE = pytest.param(None, marks=pytest.mark.skip("no private model is shipped in checkpoints/private yet"))

each = pytest.mark.parametrize("model", MODELS or [NONE], ids=[path.name for path in MODELS] or ["none"])


@each
def test_the_folder_verifies_and_is_small(model: Path) -> None:
    verdict = verify_release(model)
    assert verdict.sound, "\n".join(verdict.lines())
    assert sum(path.stat().st_size for path in model.iterdir()) < LARGEST


def test_all_shipped_models_together_are_small() -> None:
    assert 1e6 < sum(path.stat().st_size for path in FOLDER.parent.rglob("*") if path.is_file()) < SHIPPED


@each
def test_epsilon_is_that_of_another_accountant(model: Path) -> None:
    """Opacus' PRV accountant (Gopi et al. 2021), which shares no code with the card's; its answer is an upper bound."""
    accountants = pytest.importorskip("opacus.accountants", reason="no second accountant: pip install opacus")
    card = ReleaseCard.read(model / "privacy.json")
    if card.plan.relation != "add_or_remove_one" or card.plan.sampling != "poisson" or card.others:
        pytest.skip("the PRV accountant knows one run with Poisson batches, one record more or less")
    other = accountants.PRVAccountant()
    whole = 1 - 1e-9  # a query of all records; at exactly 1 Opacus divides by zero
    other.history = [
        (event.noise_multiplier, min(event.sample_rate, whole), count) for event, count in card.ledger.events
    ]
    claimed, slack = next(iter(card.epsilons().values())), 0.01
    found = other.get_epsilon(card.plan.delta, eps_error=slack, delta_error=card.plan.delta / 1000)
    assert claimed == pytest.approx(found - slack, rel=0.01, abs=slack / 5)
    stated = float(model.name.rpartition("-eps")[2])
    assert 0.97 * stated < claimed <= stated, "the folder's name says epsilon"


@each
def test_the_weights_sample_in_full_precision(model: Path) -> None:
    config, weights = ReleaseFolder(model).require_model()
    assert all(torch.isfinite(value).all() for value in read_checkpoint(weights).state_dict.values())
    network = load_model(config, weights, torch.device("cpu"))
    samples = draw_samples(network, 4, SamplingOptions(steps=4, sampler="dpm-solver++", eta=0.0), range(4))
    assert samples.images.shape[0] == 4 and torch.isfinite(samples.images).all()
