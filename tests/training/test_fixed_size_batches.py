"""``poisson_sampling: false``: batches of a fixed size, accounted for as what they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dp_accounting.dp_event import GaussianDpEvent, SampledWithoutReplacementDpEvent, SelfComposedDpEvent
from dp_accounting.privacy_accountant import NeighboringRelation
from dp_accounting.rdp import RdpAccountant

from ldm.errors import UserError
from ldm.models.diffusion.dp_config import read_dp_config
from ldm.privacy.clipping import PerRecordClipper
from ldm.privacy.config import DPConfig
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.ranks import Ranks
from ldm.privacy.sampling import FixedSizeBatchSampler, PoissonBatchSampler, sampler_from_plan
from ldm.training import train
from ldm.training.run_account import make_plan
from tests import tiny

RECORDS, BATCH, DELTA = 200, 30, 1e-4


def config(**changes: Any) -> DPConfig:
    return read_dp_config(tiny.dp(poisson_sampling=False, delta=DELTA, **changes))


def planned(**changes: Any) -> PrivacyPlan:
    return make_plan(config(**changes), RECORDS, BATCH, {"max_epochs": 2})


def test_the_plan_says_what_is_drawn() -> None:
    plan = planned()
    assert (plan.sampling, plan.relation) == ("without_replacement", "replace_one")
    assert plan.sample_rate == BATCH / RECORDS  # exactly, not the lineage's 1 / ceil(N / B)
    assert plan.steps == 2 * 7
    assert plan.noise_std == pytest.approx(plan.noise_multiplier * 2 * plan.max_grad_norm)


def test_epsilon_is_that_of_sampling_without_replacement() -> None:
    plan = planned(noise_multiplier=1.5)
    accountant = RdpAccountant(neighboring_relation=NeighboringRelation.REPLACE_ONE)
    step = SampledWithoutReplacementDpEvent(RECORDS, BATCH, GaussianDpEvent(1.5))
    accountant.compose(SelfComposedDpEvent(step, plan.steps))
    assert plan.epsilon() == pytest.approx(accountant.get_epsilon(DELTA), rel=1e-6)


def test_noise_is_calibrated_for_it_and_is_more_than_poisson_batches_need() -> None:
    plan = planned(epsilon=4.0, noise_multiplier=None)
    assert 4.0 * (1 - 2e-3) <= plan.epsilon() <= 4.0
    other = replace(config(epsilon=4.0, noise_multiplier=None), poisson_sampling=True)
    poisson = make_plan(other, RECORDS, BATCH, {"max_epochs": 2})
    assert poisson.relation == "add_or_remove_one"
    assert plan.noise_std > poisson.noise_std


@pytest.mark.parametrize("value", [None, True])
def test_poisson_batches_are_the_default(value: bool | None) -> None:
    plan = make_plan(read_dp_config(tiny.dp(poisson_sampling=value)), RECORDS, BATCH, {"max_steps": 3})
    assert (plan.sampling, plan.relation) == ("poisson", "add_or_remove_one")
    assert type(sampler_from_plan(plan, RECORDS)) is PoissonBatchSampler


def test_batches_have_one_size_and_no_record_twice() -> None:
    sampler = sampler_from_plan(planned(), RECORDS)
    assert type(sampler) is FixedSizeBatchSampler
    draws = list(sampler)
    assert len(draws) == len(sampler) == 7
    assert all(len(set(draw)) == len(draw) == BATCH for draw in draws)
    assert len({index for draw in draws for index in draw}) < RECORDS, (
        "draws are independent, this is no shuffled epoch"
    )


def test_seeded_draws_go_on_where_they_were() -> None:
    plan = planned(insecure_seed=3)
    whole = list(sampler_from_plan(plan, RECORDS))
    assert next(iter(sampler_from_plan(plan, RECORDS, start=4))) == whole[4]


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sample_rate": 0.1}, "dp_config.sample_rate: with poisson_sampling: false the rate is batch_size / records"),
        ({"dataset_size": 300}, "dp_config.dataset_size: .* must be the number of records, 200"),
    ],
)
def test_another_rate_than_the_real_one_is_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        planned(**changes)


def test_a_batch_larger_than_the_set_is_refused() -> None:
    with pytest.raises(UserError, match="batch_size: 201 exceeds the 200 training records"):
        make_plan(config(), RECORDS, 201, {"max_steps": 2})


@pytest.mark.parametrize("value", ["false", 0, "no"])
def test_words_for_false_mean_false(value: Any) -> None:
    """A word is no truth value of its own: taken for true, it would be accounted as a Poisson draw."""
    assert read_dp_config(tiny.dp(poisson_sampling=value)).poisson_sampling is False
    with pytest.raises(UserError, match="poisson_sampling"):
        read_dp_config(tiny.dp(poisson_sampling="perhaps"))


def test_a_smaller_set_than_planned_is_refused() -> None:
    # resumed on fewer records, a batch would be a larger share than the ledger charges
    with pytest.raises(UserError, match="the training set has 150 records, fewer than the run was planned for"):
        sampler_from_plan(planned(), 150)
    assert len(next(iter(sampler_from_plan(planned(), 250)))) == BATCH


def test_parts_of_a_batch_cannot_be_drawn_apart() -> None:
    with pytest.raises(UserError, match="several processes cannot draw in parts"):
        sampler_from_plan(planned(), RECORDS, ranks=Ranks(0, 2))


def run_options(tmp_path: Path, **dp: Any) -> Any:
    digits = tiny.write_digits(tmp_path / "digits")
    model = tiny.ldm(dp_config=tiny.dp(poisson_sampling=False, max_batch_size=4, **dp))
    return tiny.options(tmp_path, tiny.run_config(model, digits, 6, max_steps=3))


def test_a_run_takes_batches_of_that_size_in_chunks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    chunks: list[int] = []
    accumulate = PerRecordClipper.accumulate

    def counting(self: PerRecordClipper, loss: Any, rows: Any, copies: int = 1, weighted: int | None = None) -> None:
        chunks.append(len(rows["t"]) // copies)
        accumulate(self, loss, rows, copies, weighted)

    monkeypatch.setattr(PerRecordClipper, "accumulate", counting)
    with caplog.at_level("INFO"):
        run = train(run_options(tmp_path))
    assert chunks == [4, 2] * 3
    card = json.loads((run.path / "privacy.json").read_text())
    assert card["relation"] == "replace_one" and "replace_one" in card["statement"]
    assert list(card["epsilon"]) == ["rdp"] and np.isfinite(card["epsilon"]["rdp"])
    (entry,) = card["ledger"]["entries"]
    assert (entry["count"], entry["event"]["sampling"], entry["event"]["sample_rate"]) == (
        3,
        "without_replacement",
        0.25,
    )
    said = [record.getMessage() for record in caplog.records if "poisson_sampling" in record.getMessage()]
    assert len(said) == 1 and "exactly 6 records without replacement" in said[0] and "sensitivity 2C" in said[0]


def test_a_run_on_two_devices_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = run_options(tmp_path)
    options.trainer.update(devices=2, accelerator="cpu")
    with pytest.raises(UserError, match="poisson_sampling: false draws one batch for all and runs on one device"):
        train(options)
    assert not (tmp_path / "logs").exists()


def test_a_resumed_run_keeps_its_sampling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    run = train(run_options(tmp_path))
    again = tiny.options(
        tmp_path, {}, base=[], resume=str(run.path), dotlist=["model.params.dp_config.poisson_sampling=true"]
    )
    with pytest.raises(UserError, match="poisson_sampling: the resumed run draws without_replacement batches"):
        train(again)
