"""`PrivacyPlan`: validation, the lineage's rules for rate and steps, calibration, round trip."""

from __future__ import annotations

import dataclasses
import json
import logging

import pytest

from ldm.errors import UserError
from ldm.privacy.event import SamplingEvent
from ldm.privacy.plan import PrivacyPlan, lineage_sample_rate, planned_steps
from ldm.privacy.selection import Selection

VALUES = dict(
    sample_rate=1 / 30, steps=600, noise_multiplier=1.5, max_grad_norm=0.5, delta=1e-5, expected_batch_size=2000
)
SETTING = dict(target_epsilon=10, delta=1e-5, num_records=4000, batch_size=400, max_grad_norm=1.0)


def plan(**changes):
    return PrivacyPlan(**{**VALUES, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_rate": 0}, "sample_rate"),
        ({"sample_rate": 1.5}, "sample_rate"),
        ({"sample_rate": float("nan")}, "sample_rate"),
        ({"steps": 0}, "steps"),
        ({"steps": 10.0}, "steps"),
        ({"steps": True}, "steps"),
        ({"noise_multiplier": 0}, "noise_multiplier"),
        ({"noise_multiplier": float("inf")}, "noise_multiplier"),
        ({"max_grad_norm": -1}, "max_grad_norm"),
        ({"delta": 0}, "delta"),
        ({"delta": 1}, "delta"),
        ({"delta": 1e-5, "num_records": 100_000}, "1 / 100000"),
        ({"expected_batch_size": 0}, "expected_batch_size"),
        ({"relation": "replace"}, "did you mean 'replace_one'"),
        ({"target_epsilon": 0}, "target_epsilon"),
        ({"noise_multiplicity": 0}, "noise_multiplicity"),
        ({"clipping": ""}, "clipping"),
        ({"sampling": "poison"}, "did you mean 'poisson'"),
        ({"sampling": "without_replacement"}, "replace_one"),
        ({"insecure_seed": -1}, "insecure_seed"),
        ({"num_records": 0}, "num_records"),
    ],
)
def test_values_out_of_range_are_named(changes, message):
    with pytest.raises(UserError, match=message):
        plan(**changes)


def test_a_plan_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan().steps = 3


def test_the_noise_follows_the_relation():
    assert plan().noise_std == pytest.approx(1.5 * 0.5)
    assert plan(relation="replace_one").noise_std == pytest.approx(1.5 * 2 * 0.5)


def test_the_event_is_the_plans_own():
    event = plan(relation="replace_one", sampling="without_replacement").event()
    assert event == SamplingEvent(1 / 30, 1.5, "without_replacement", "replace_one")


def test_multiplicity_costs_nothing():
    assert plan(noise_multiplicity=8).epsilon() == plan().epsilon()
    assert plan(noise_multiplicity=8).noise_std == plan().noise_std


def test_a_plan_survives_json():
    original = plan(target_epsilon=3, noise_multiplicity=4, num_records=60_000, insecure_seed=7, clipping="automatic")
    copy = PrivacyPlan.from_dict(json.loads(json.dumps(original.to_dict())))
    assert copy == original and copy.digest() == original.digest()


def test_every_field_is_in_the_digest():
    changed = dict(
        sample_rate=0.1,
        steps=601,
        noise_multiplier=1.6,
        max_grad_norm=0.6,
        delta=1e-6,
        expected_batch_size=1999,
        relation="replace_one",
        target_epsilon=1.0,
        noise_multiplicity=2,
        clipping="automatic",
        num_records=60_000,
        insecure_seed=1,
        selection=Selection(1.0, 0.5),
    )
    assert {field.name for field in dataclasses.fields(PrivacyPlan)} == {*changed, "sampling"}
    digests = {plan().digest(), *(plan(**{name: value}).digest() for name, value in changed.items())}
    assert len(digests) == 1 + len(changed)
    assert plan().differences(plan(steps=601)) == {"steps": (600, 601)}


def test_reading_refuses_unknown_and_missing_keys():
    values = plan().to_dict()
    with pytest.raises(UserError, match="did you mean 'noise_multiplier'"):
        PrivacyPlan.from_dict({**values, "noise_multiplyer": 1})
    del values["delta"]
    with pytest.raises(UserError, match="missing delta"):
        PrivacyPlan.from_dict(values)
    with pytest.raises(UserError, match="mapping"):
        PrivacyPlan.from_dict([])


@pytest.mark.parametrize(
    ("records", "batch", "epochs", "steps"),
    [(60_000, 2000, 200, 6000), (50_000, 80, 20, 12_500), (162_770, 2048, 70, 5600)],
)
def test_rate_and_steps_follow_the_lineage(records, batch, epochs, steps):
    rate = lineage_sample_rate(records, batch)
    assert rate == 1 / -(-records // batch)
    assert planned_steps(rate, epochs=epochs) == steps


def test_every_inverse_rate_gives_whole_epochs():
    assert all(planned_steps(1 / length, epochs=1) == length for length in range(1, 3000))


def test_the_rate_hides_one_record_more_or_less():
    assert lineage_sample_rate(3999, 400) == lineage_sample_rate(4000, 400)
    one, other = (PrivacyPlan.calibrate(**{**SETTING, "num_records": n}, epochs=2) for n in (3999, 4000))
    assert one.event() == other.event() and one.expected_batch_size == other.expected_batch_size == 400


def test_calibration_meets_the_target_and_says_so(caplog):
    with caplog.at_level(logging.INFO):
        found = PrivacyPlan.calibrate(**SETTING, epochs=8, noise_multiplicity=4)
    assert found.steps == 80 and found.sample_rate == 0.1 and found.num_records == 4000
    assert 0.995 * 10 <= found.epsilon() <= 10
    assert found.epsilon("rdp") > 10
    (line,) = caplog.messages
    for word in (f"{found.noise_multiplier:.4f}", "80 steps", "0.1,", "9.99", "add_or_remove_one", "pld"):
        assert word in line


def test_an_insecure_plan_says_so_in_the_log(caplog):
    with caplog.at_level(logging.INFO):
        found = PrivacyPlan.calibrate(**SETTING, steps=5, insecure_seed=0)
    assert "NOT private" in caplog.text and not found.secure


def test_steps_and_rate_may_be_given():
    found = PrivacyPlan.calibrate(**SETTING, steps=17, sample_rate=0.03)
    assert (found.steps, found.sample_rate, found.expected_batch_size) == (17, 0.03, 400)
    without_records = {key: value for key, value in SETTING.items() if key != "num_records"}
    assert PrivacyPlan.calibrate(**without_records, steps=17, sample_rate=0.03).event() == found.event()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "exactly one of epochs"),
        ({"epochs": 1, "steps": 10}, "exactly one of epochs"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": 1, "delta": 1 / 4000}, "below"),
        ({"epochs": 1, "target_epsilon": -1}, "target epsilon"),
        ({"epochs": 1, "num_records": None}, "num_records"),
        ({"epochs": 1, "batch_size": 0}, "batch_size"),
        ({"epochs": 1, "sampling": "without_replacement"}, "replace_one"),
    ],
)
def test_calibration_refuses_unclear_settings(changes, message):
    with pytest.raises(UserError, match=message):
        PrivacyPlan.calibrate(**{**SETTING, **changes})


def test_extending_a_run_charges_its_past():
    past = [(SamplingEvent(0.1, 1.0), 40)]
    found = PrivacyPlan.calibrate(**SETTING, steps=40, history=past)
    assert found.noise_multiplier > PrivacyPlan.calibrate(**SETTING, steps=40).noise_multiplier
    assert found.epsilon() < 10
