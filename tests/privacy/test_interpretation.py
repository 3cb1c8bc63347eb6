"""A ledger in other terms, against the closed form of the Gaussian mechanism and against known trade-offs."""

from __future__ import annotations

import math

import pytest
from scipy.stats import norm

from ldm.privacy.accounting import epsilon
from ldm.privacy.event import ADD_OR_REMOVE_ONE, REPLACE_ONE, WITHOUT_REPLACEMENT, SamplingEvent
from ldm.privacy.interpretation import gaussian_mu, interpret

DELTA = 1e-5


@pytest.mark.parametrize("sigma", [0.7, 2.0, 8.0])
def test_one_gaussian_release_is_read_exactly(sigma: float) -> None:
    """Without sampling everything is known: mu = 1/sigma, TPR = Phi(Phi^-1(FPR) + mu), guess = Phi(mu / 2)."""
    found = interpret([([(SamplingEvent(1.0, sigma), 1)], None)], DELTA)
    mu = 1 / sigma
    assert found.gaussian_mu == pytest.approx(mu, rel=2e-3)
    assert found.rate_at_one_percent == pytest.approx(norm.cdf(norm.ppf(0.01) + mu), rel=2e-2)
    assert found.guess == pytest.approx(norm.cdf(mu / 2), rel=5e-3)
    assert found.guess >= norm.cdf(mu / 2) - 1e-9, "an upper bound"


def test_nothing_released_is_a_coin_toss() -> None:
    found = interpret([], DELTA)
    assert (found.guess, found.rate_at_one_percent, found.gaussian_mu) == (0.5, pytest.approx(0.01), 0.0)


def test_too_little_noise_protects_nobody() -> None:
    found = interpret([([(SamplingEvent(1.0, 0.001), 1)], None)], DELTA)
    assert (found.guess, found.rate_at_one_percent) == (1.0, 1.0) and math.isinf(found.gaussian_mu)


def test_bounds_of_pure_epsilon_hold() -> None:
    """At most e^eps / (1 + e^eps) plus delta of a right guess (Kairouz et al. 2015), whatever the sampling."""
    events = [(SamplingEvent(0.05, 1.2), 200)]
    spent = epsilon(events, DELTA)
    found = interpret([(events, None)], DELTA)
    assert 0.5 < found.guess <= math.exp(spent) / (1 + math.exp(spent)) + DELTA
    assert 0.01 < found.rate_at_one_percent <= math.exp(spent) * 0.01 + DELTA


def test_the_other_relation_costs_more_when_a_record_is_replaced() -> None:
    events = [(SamplingEvent(0.05, 2.0), 100)]
    found = interpret([(events, None)], DELTA)
    assert found.other_relation == REPLACE_ONE and found.other_epsilon is not None
    assert epsilon(events, DELTA) < found.other_epsilon < 3 * epsilon(events, DELTA)
    back = interpret([([(SamplingEvent(0.05, 1.0, relation=REPLACE_ONE), 100)], None)], DELTA)
    assert back.other_relation == ADD_OR_REMOVE_ONE
    assert back.other_epsilon == pytest.approx(epsilon(events, DELTA), rel=1e-6)


def test_batches_of_fixed_size_are_bounded_by_their_own_accountant() -> None:
    events = [(SamplingEvent(0.1, 2.0, WITHOUT_REPLACEMENT, REPLACE_ONE), 20)]
    found = interpret([(events, None)], DELTA)
    assert 0.5 < found.guess < 1 and found.other_epsilon is None


def test_gaussian_mu_is_monotone_and_survives_large_epsilon() -> None:
    values = [gaussian_mu(spent, DELTA) for spent in (0.1, 1.0, 10.0, 100.0, 1000.0)]
    assert values == sorted(values) and values[0] > 0
