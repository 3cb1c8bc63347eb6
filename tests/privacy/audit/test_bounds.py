"""The bounds against exact chances and simulated worst cases."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy.optimize import linprog
from scipy.stats import binom, norm

from ldm.privacy.audit.f_dp import Curve, refuted
from ldm.privacy.audit.gaussian import rate_limit, shift_limit
from ldm.privacy.audit.one_run import chance, one_run_bound, right_guesses
from ldm.privacy.event import SamplingEvent
from ldm.privacy.plan import PrivacyPlan


def test_guesses_go_to_both_ends_of_the_scores() -> None:
    scores = np.array([3.0, -2.0, 0.1, 5.0, -4.0, 0.0])
    present = np.array([True, False, True, False, False, True])
    assert right_guesses(scores, present, 4) == 3
    assert right_guesses(scores, present, 3) == 2  # the odd one goes to the top


def test_without_delta_the_chance_is_binomial() -> None:
    assert chance(50, 20, 15, 1.0, 0.0) == pytest.approx(binom.sf(14, 20, math.e / (1 + math.e)))


@pytest.mark.parametrize(("count", "right"), [(3, 3), (4, 3), (5, 5)])
def test_the_chance_bounds_a_mechanism_that_uses_its_delta(count: int, right: int) -> None:
    # tells every coin with chance delta each, flips the others by randomised response
    epsilon, delta = 0.7, 0.05
    honest = math.exp(epsilon) / (1 + math.exp(epsilon))
    success = delta + (1 - delta) * honest
    assert binom.sf(right - 1, count, success) <= chance(count, count, right, epsilon, delta)


def test_a_mechanism_that_tells_nothing_is_rarely_found_to_leak() -> None:
    generator = np.random.default_rng(0)
    bounds = []
    for _ in range(200):
        present = generator.random(400) < 0.5
        bounds.append(one_run_bound(generator.normal(size=400), present, 1e-6, 0.95))
    assert np.mean(np.array(bounds) > 0) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 200)


def gaussian_curve(mu: float) -> Curve:
    epsilons = np.linspace(-6, 6, 400)
    offsets = norm.cdf(mu / 2 - epsilons / mu) - np.exp(epsilons) * norm.cdf(-mu / 2 - epsilons / mu)
    return Curve(np.exp(epsilons), offsets)


def test_a_curve_is_that_of_the_plan() -> None:
    plan = PrivacyPlan(1.0, 4, 4.0, 1.0, 1e-5, 10)  # four full batches: mu = 0.5
    curve, exact = Curve.of(plan), gaussian_curve(0.5)
    assert plan.event() == SamplingEvent(1.0, 4.0)
    for value in (0.01, 0.1, 0.4, 0.8):
        truth = norm.cdf(norm.ppf(value) - 0.5)
        assert exact.inverse(value) == pytest.approx(truth, rel=1e-2)
        assert curve.inverse(value) == pytest.approx(truth, rel=2e-2)
        assert curve.inverse(value) <= truth * (1 + 1e-9), "fewer lines make a weaker claim"


def largest_chance(curve: Curve, canaries: int, guesses: int, right: int) -> float:
    """The theorem's constraints as a linear programme: an oracle that shares nothing with the recursion."""
    places = np.arange(guesses + 1)
    rows, limits = [], []
    for start, (slope, offset) in product(range(guesses), zip(curve.slopes, curve.offsets, strict=True)):
        wins = np.where(places >= start + 1, places, 0) / canaries
        losses = np.where(places >= start, guesses - places, 0) / canaries
        rows.append(wins - slope * losses)
        limits.append(offset)
    found = linprog(
        -(places >= right).astype(float), rows, limits, np.ones((1, guesses + 1)), [1.0], bounds=(0, 1), method="highs"
    )
    return float(-found.fun)


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.5])
@pytest.mark.parametrize(("canaries", "guesses", "right"), [(10, 10, 9), (40, 8, 8), (60, 12, 12)])
def test_the_recursion_refutes_what_the_linear_programme_refutes(
    mu: float, canaries: int, guesses: int, right: int
) -> None:
    curve = Curve(gaussian_curve(mu).slopes[::20], gaussian_curve(mu).offsets[::20])
    limit = largest_chance(curve, canaries, guesses, right)
    if limit < 0.98:
        assert refuted(curve, canaries, guesses, right, limit * 1.02)
    assert not refuted(curve, canaries, guesses, right, limit * 0.98)


def test_independent_gaussian_canaries_are_refuted_no_more_often_than_stated() -> None:
    generator, curve, found = np.random.default_rng(1), gaussian_curve(1.0), 0
    for _ in range(300):
        present = generator.random(200) < 0.5
        scores = generator.normal(size=200) + present
        found += refuted(curve, 200, 20, right_guesses(scores, present, 20), 0.2)
    assert found / 300 < 0.2


def test_the_shift_is_below_the_truth_with_its_confidence_and_close_to_it() -> None:
    generator, limits = np.random.default_rng(2), []
    for _ in range(300):
        drawn = generator.random((60, 30)) < 0.2
        values = 1.7 * (generator.normal(size=(60, 30)) + 0.8 * drawn) + generator.normal(size=(60, 1)) * 5
        limits.append(shift_limit(values, drawn, 0.05))
    assert np.mean(np.array(limits) > 0.8) <= 0.1
    assert np.median(limits) > 0.6


def test_a_table_without_deviation_or_without_draws() -> None:
    drawn = np.array([[True, False, False], [False, True, False]])
    assert shift_limit(drawn * 1.0, drawn, 0.05) == math.inf
    assert shift_limit(np.ones((2, 3)), np.zeros((2, 3), bool), 0.05) == 0
    assert shift_limit(-1.0 * drawn, drawn, 0.05) == 0


def test_the_rate_limit_is_that_of_clopper_and_pearson() -> None:
    assert rate_limit(0, 10, 0.05) == 0
    limit = rate_limit(7, 20, 0.05)
    assert binom.sf(6, 20, limit) == pytest.approx(0.05)
