"""`DPConfig`: ranges, required settings, warnings about sizes and delta, and the plan made from them."""

from __future__ import annotations

import logging
import math
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from ldm.errors import UserError
from ldm.privacy.config import DPConfig
from ldm.privacy.plan import PrivacyPlan


def config(**changes: Any) -> DPConfig:
    return DPConfig(**{"enabled": True, "noise_multiplier": 1.0, "delta": 1e-6, "max_grad_norm": 0.5, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 0.0}, "dp_config.epsilon is 0.0"),
        ({"epsilon": math.nan}, "dp_config.epsilon is nan"),
        ({"delta": 1.5}, "dp_config.delta is 1.5"),
        ({"max_grad_norm": math.inf}, "dp_config.max_grad_norm is inf"),
        ({"sample_rate": 1.01}, "dp_config.sample_rate is 1.01"),
        ({"noise_multiplier": -1.0}, "dp_config.noise_multiplier is -1"),
        ({"noise_multiplicity": 0}, "dp_config.noise_multiplicity is 0"),
        ({"dataset_size": 0}, "dp_config.dataset_size is 0"),
        ({"insecure_seed": -1}, "dp_config.insecure_seed is -1"),
        ({"max_batch_size": 0}, "dp_config.max_batch_size: 0"),
        ({"engine": "bookeeping"}, "did you mean 'bookkeeping'"),
    ],
)
def test_a_value_out_of_range_is_refused_before_anything_is_computed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        config(**changes)


def test_a_config_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        config().delta = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delta": None}, "dp_config.delta is missing"),
        ({"max_grad_norm": None}, "dp_config.max_grad_norm is missing"),
        ({"noise_multiplier": None}, "either epsilon .* or noise_multiplier"),
        ({"epsilon": 1.0}, "either epsilon .* or noise_multiplier"),
        ({"poisson_sampling": False, "sample_rate": 0.5}, "remove it"),
    ],
)
def test_what_is_missing_is_refused_when_it_is_needed(changes: dict[str, Any], message: str) -> None:
    incomplete = config(**changes)
    with pytest.raises(UserError, match=message):
        incomplete.require_complete()
    with pytest.raises(UserError, match=message):
        incomplete.plan(num_records=1000, batch_size=100, steps=10)


def test_the_plan_has_the_settings_and_the_stated_size() -> None:
    plan = config(dataset_size=1100, noise_multiplicity=4, clipping="automatic", insecure_seed=3).plan(
        num_records=1000, batch_size=100, epochs=2
    )
    assert plan == PrivacyPlan(
        sample_rate=1 / 11,
        steps=22,
        noise_multiplier=1.0,
        max_grad_norm=0.5,
        delta=1e-6,
        expected_batch_size=100,
        noise_multiplicity=4,
        clipping="automatic",
        num_records=1100,
        insecure_seed=3,
    )


def test_a_batch_of_fixed_size_is_its_exact_share_of_the_records() -> None:
    plan = config(poisson_sampling=False).plan(num_records=990, batch_size=100, steps=5)
    assert (plan.sample_rate, plan.sampling, plan.relation) == (100 / 990, "without_replacement", "replace_one")
    with pytest.raises(UserError, match="batch_size: 1000 exceeds the 990 training records"):
        config(poisson_sampling=False).plan(num_records=990, batch_size=1000, steps=5)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (None, "dataset_size is not given"),
        (1000, "exactly the number of training records"),
        (1001, None),
        (2000, None),
        (2001, "2001 is stated, the training set has 1000 records"),
    ],
)
def test_a_careless_size_is_said(size: int | None, said: str | None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        config(dataset_size=size).check_records(1000)
    assert len(caplog.records) == (said is not None)
    assert said is None or said in caplog.text


def test_a_size_that_is_too_small_is_refused() -> None:
    with pytest.raises(UserError, match="999 is stated, but the training set has 1000"):
        config(dataset_size=999).check_records(1000)
    with pytest.raises(UserError, match="it must be the number of records, 1000"):
        config(dataset_size=1001, poisson_sampling=False).check_records(1000)


@pytest.mark.parametrize(("delta", "said"), [(1e-4, False), (1.01e-4, True), (9e-4, True)])
def test_a_delta_above_a_tenth_of_one_record_is_said(
    delta: float, said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        config(delta=delta).plan(num_records=1000, batch_size=100, steps=1)
    assert ("delta is the chance that a record is given away" in caplog.text) == said
