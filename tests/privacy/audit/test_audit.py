"""Audits of the mechanism as it is, and with every planted mistake."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks.broken_mechanisms import BROKEN
from ldm.errors import UserError
from ldm.privacy.audit import METHODS, AuditResult, Mechanism, audit, audit_pairs, judge, observe
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.sampling import PoissonBatchSampler

# epsilon 2.6 at delta 1e-5
PLAN = PrivacyPlan(
    sample_rate=0.2,
    steps=25,
    noise_multiplier=2.0,
    max_grad_norm=0.3,
    delta=1e-5,
    expected_batch_size=8,
    noise_multiplicity=3,
    insecure_seed=7,
)
PAIRS_PLAN = replace(PLAN, sample_rate=0.02, steps=150, noise_multiplier=1.0)


def toy() -> tuple[nn.Module, Mapping[str, Tensor]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    return net, {"x": torch.randn(12, 6), "y": torch.randn(12, 3)}


def run(
    plan: PrivacyPlan = PLAN, mechanism: Mechanism | None = None, canaries: int = 1500, seed: int = 0
) -> AuditResult:
    net, records = toy()

    def loss(rows: Mapping[str, Tensor]) -> Tensor:
        return (net(rows["x"]) - rows["y"]).square().sum(1)

    return audit(
        plan, model=net, loss=loss, records=records, canaries=canaries, mechanism=mechanism, seed=seed, microbatch=4
    )


def test_the_mechanism_leaks_nearly_what_it_claims_and_no_more() -> None:
    result = run()
    assert result.claimed_epsilon == pytest.approx(PLAN.epsilon())
    assert 0.8 < result.share < 1
    assert not result.exceeded and "consistent" in result.verdict()
    assert (result.canaries, result.steps, result.confidence, result.method) == (1500, 25, 0.95, "gaussian")


@pytest.mark.parametrize("name", [name for name in BROKEN if "shuffled" not in name])
def test_a_planted_mistake_exceeds_the_claim(name: str) -> None:
    result = run(mechanism=BROKEN[name])
    assert result.exceeded, result.verdict()
    assert "EXCEEDED" in result.verdict() and "do not publish" in result.verdict()


def test_replacing_a_record_is_audited_under_its_own_relation() -> None:
    plan = replace(PLAN, relation="replace_one")
    assert 0.8 < run(plan).share < 1
    assert run(plan, BROKEN["noise of half the deviation"]).exceeded


@pytest.mark.parametrize("clipping", ["automatic", "per_layer"])
def test_other_clipping_rules(clipping: str) -> None:
    result = run(replace(PLAN, clipping=clipping))
    lowest = 0.8 if clipping == "automatic" else 0.3  # of three layers a canary is one
    assert lowest < result.share < 1


def test_every_method_judges_the_same_run_and_stays_below_the_claim() -> None:
    signals = observe(replace(PLAN, noise_multiplicity=1), canaries=4000, seed=0)
    shares = {method: judge(signals, method).share for method in METHODS}
    assert all(0.15 < share < 1 for share in shares.values()), shares
    assert shares["gaussian"] > shares["f_dp"] > shares["one_run"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["f_dp", "one_run"])
def test_bounds_that_hold_for_any_mechanism_find_a_gross_mistake(method: str) -> None:
    weak = Mechanism(noise=lambda plan: type(Mechanism().noise(plan))(plan.noise_std / 8, insecure_seed=1))
    assert audit(replace(PLAN, noise_multiplicity=1), canaries=4000, mechanism=weak, method=method, seed=0).exceeded


def seeded_draws(plan: PrivacyPlan, num_records: int) -> PoissonBatchSampler:
    """The project's sampler with one cheap generator for all draws."""
    generator = np.random.default_rng(plan.insecure_seed)
    return PoissonBatchSampler(num_records, plan.sample_rate, plan.steps, generator)


def test_shuffled_epochs_are_found_among_records_that_pull_the_other_way() -> None:
    right = audit_pairs(PAIRS_PLAN, pairs=800, mechanism=Mechanism(sampler=seeded_draws), seed=0)
    wrong = audit_pairs(PAIRS_PLAN, pairs=800, mechanism=BROKEN["shuffled epochs instead of Poisson draws"], seed=0)
    assert not right.exceeded, right.verdict()
    assert wrong.exceeded and "shuffled" in wrong.statistic, wrong.verdict()


def test_a_result_becomes_json_for_the_card() -> None:
    result = AuditResult(1.0, 1.5, 1e-5, 0.95, 10, 2, "what", "gaussian")
    values = json.loads(json.dumps(result.to_dict()))
    assert values["exceeded"] is True and values["lower_bound"] == 1.5 and "EXCEEDED" in values["verdict"]
    assert AuditResult(0.0, 0.0, 1e-5, 0.95, 10, 2, "what", "gaussian").share == 0


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [1.0, 4.0, 10.0])
def test_twenty_runs_reach_four_fifths_of_the_claim_and_never_exceed_it(epsilon: float) -> None:
    plan = PrivacyPlan.calibrate(
        target_epsilon=epsilon, delta=1e-5, sample_rate=0.1, steps=50, batch_size=10, max_grad_norm=1.0
    )
    for seed in range(20):
        results = audit(replace(plan, insecure_seed=seed), canaries=4000, seed=seed)
        assert 0.8 < results.share < 1, (seed, results.verdict())


@pytest.mark.slow
def test_pairs_never_exceed_the_claim_of_a_correct_mechanism() -> None:
    for seed in range(10):
        result = audit_pairs(replace(PAIRS_PLAN, insecure_seed=None), pairs=1000, seed=seed)
        assert not result.exceeded, result.verdict()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: audit(PLAN, canaries=1), "canaries"),
        (lambda: audit(PLAN, canaries=10, method="gauss"), "audit method is 'gauss'"),
        (lambda: audit(PLAN, canaries=10, confidence=1.0), "confidence is 1.0, it must be below 1"),
        (lambda: audit(PLAN, model=toy()[0]), "needs model, loss and records, found only model"),
        (
            lambda: observe(PLAN, model=toy()[0], loss=len, records={"x": torch.ones(2), "y": torch.ones(3)}),
            "different",
        ),
        (lambda: observe(PLAN, mechanism=Mechanism(sampler=lambda plan, n: [[0]]), canaries=5), "gave 1 draws"),
        (lambda: audit_pairs(replace(PLAN, relation="replace_one")), "pairs judge Poisson plans"),
        (
            lambda: audit(replace(PLAN, relation="replace_one", sampling="without_replacement"), canaries=40),
            "judges Poisson plans, .* take one_run",
        ),
    ],
)
def test_nonsense_is_refused_by_name(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
