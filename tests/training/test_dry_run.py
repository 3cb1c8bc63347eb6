"""What --dry-run prints, and that it stops before anything is computed or written."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant

from ldm.privacy.event import SamplingEvent
from ldm.privacy.plan import PrivacyPlan
from ldm.training import driver, train
from ldm.training.dry_run import privacy_lines
from ldm.training.estimate import count_needs
from tests import tiny
from tests.tiny_runs import public_config


def refuse(*_: object) -> None:
    raise AssertionError("nothing is built, encoded or trained")


@pytest.fixture(autouse=True)
def nothing_is_computed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("build", "cache_latents", "fit"):
        monkeypatch.setattr(driver, name, refuse)


def test_a_private_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dp = tiny.dp(dataset_size=30, max_batch_size=2, noise_multiplicity=3)
    model = tiny.ldm("attention", train_attention_only=True, dp_config=dp)
    config = tiny.run_config(model, tiny.write_digits(tmp_path / "digits"), 6, max_epochs=2)
    options = tiny.options(tmp_path / "a", config, dry_run=True)
    before = set(tmp_path.rglob("*"))
    train(options)
    assert set(tmp_path.rglob("*")) == before
    text = capsys.readouterr().out
    for words in (
        "24 in the training set, 30 stated",
        "rate q = 0.2, expected batch 6, noise multiplicity 3",
        "steps           10",
        "sigma = 1 times the sensitivity, clipping norm 0.1",
        "epsilon = ",
        "learning rate   0.001",
        "microbatch      2",
        "GiB on cpu (6 rows at a time)",
        "time            at least",
    ):
        assert words in text, words


def test_epsilon_is_that_of_the_card_with_statistics_and_other_runs() -> None:
    plan = PrivacyPlan(0.25, 3, 1.5, 1.0, 1e-5, 8)
    statistics = SamplingEvent(1.0, 4.0)

    def exact(runs: int) -> float:
        accountant = PLDAccountant()
        accountant.compose(GaussianDpEvent(4.0))
        accountant.compose(SelfComposedDpEvent(PoissonSampledDpEvent(0.25, GaussianDpEvent(1.5)), 3 * runs))
        return float(accountant.get_epsilon(1e-5))

    def stated(lines: list[str]) -> float:
        (line,) = [line for line in lines if line.startswith("privacy")]
        return float(re.search(r"epsilon = ([\d.]+)", line)[1])

    own = privacy_lines(plan, 0, 8, ((statistics, 1),))
    both = privacy_lines(plan, 0, 8, ((statistics, 1),), [([(plan.event(), plan.steps)], None)])
    assert stated(own) == pytest.approx(exact(1), rel=0.01) and stated(both) == pytest.approx(exact(2), rel=0.01)
    assert stated(privacy_lines(plan, 0, 8)) < stated(own) - 0.1
    assert "with the statistics" in "".join(own) and "noise multiplier 4, released once" in "".join(own)


def test_a_public_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny.options(tmp_path / "a", public_config(tmp_path, max_epochs=3), dry_run=True))
    text = capsys.readouterr().out
    assert "steps           6" in text and "privacy         none" in text


def test_what_is_counted_is_the_model_s() -> None:
    section = tiny.ldm("spatial", train_condition_only=True)
    needs, model = count_needs(section), tiny.build(section)
    assert needs is not None
    assert needs.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert needs.trained == model.select_trainable().count
    noise = torch.zeros(1, 2, 4, 4)
    context = model.get_learned_conditioning({"class_label": torch.zeros(1, dtype=torch.long)})
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        model.loss_terms(noise, torch.zeros(1, dtype=torch.long), noise, context)
    # on the CPU, attention is one kernel that torch's counter does not know; without memory it is written out
    assert 0 < counter.get_total_flops() <= needs.operations < 1.3 * counter.get_total_flops()
    assert 0 < needs.activations < 50e6
    assert count_needs(tiny.AUTOENCODER) is None
