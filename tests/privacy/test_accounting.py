"""Accounting: golden sigmas of the lineage, agreement of three accountants, calibration, the running meter."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import rdp_privacy_accountant as rdp_library
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.errors import UserError
from ldm.privacy import accounting, meter
from ldm.privacy.accounting import accountants_for, calibrate, epsilon
from ldm.privacy.event import SamplingEvent
from ldm.privacy.meter import EpsilonMeter
from ldm.privacy.plan import PrivacyPlan

# sample rate, steps, delta, {epsilon: sigma}, computed with opacus' PRV accountant (tolerance 0.01 of epsilon)
LINEAGE = {
    "mnist": (1 / 30, 6000, 1e-5, {1: 9.775, 5: 2.427, 10: 1.472}),
    "cifar10": (1 / 25, 750, 1e-5, {1: 4.243, 5: 1.232, 10: 0.858}),
    "celeba32": (1 / 80, 5600, 1e-6, {1: 4.077, 5: 1.156, 10: 0.817}),
    "celeba32, 1000 epochs": (1 / 80, 80_000, 1e-6, {1: 15.1}),
    "celeba64": (1 / 20, 1400, 1e-6, {1: 8.062, 5: 2.005, 10: 1.245}),
    "celebahq class": (1 / 12, 600, 1e-5, {1: 7.783, 5: 2.000, 10: 1.252}),
    "celebahq class, 1000 epochs": (1 / 12, 12_000, 1e-5, {1: 34.4}),
    "celebahq text": (1 / 94, 940, 1e-5, {1: 1.460, 5: 0.690, 10: 0.552}),
    "lora cifar10": (1 / 625, 12_500, 1e-5, {1: 0.948, 5: 0.563, 10: 0.474}),
    "lora celeba32": (1 / 20, 400, 1e-5, {1: 3.911, 5: 1.173, 10: 0.826}),
    "lora celeba64": (1 / 20, 400, 1e-6, {1: 4.414, 5: 1.263, 10: 0.875}),
    "lora hq 12": (1 / 12, 120, 1e-5, {1: 3.645, 5: 1.141, 10: 0.801}),
    "lora hq 14": (1 / 14, 140, 1e-5, {1: 3.389, 5: 1.087, 10: 0.773}),
    "lora hq 15": (1 / 15, 150, 1e-5, {1: 3.279, 5: 1.064, 10: 0.762}),
}
GOLDEN = [
    pytest.param(
        rate, steps, delta, target, sigma, id=f"{name} eps {target}", marks=[pytest.mark.slow] if steps > 10_000 else []
    )
    for name, (rate, steps, delta, sigmas) in LINEAGE.items()
    for target, sigma in sigmas.items()
]

# The same by PLD: sample rate, steps, delta, epsilon, sigma
RECIPE = [
    (0.10, 100, 1e-4, 10, 0.777),
    (0.10, 200, 1e-4, 10, 0.927),
    (0.20, 100, 1e-4, 10, 1.152),
    (0.15, 80, 1e-4, 10, 0.903),
    (0.15, 40, 1e-4, 10, 0.753),
    (0.15, 60, 1e-4, 1, 3.926),
    (0.10, 100, 1e-4, 1, 3.396),
    (0.20, 100, 1e-4, 1, 6.518),
    (1 / 60, 80, 1.515e-6, 10, 0.493),
    (1 / 60, 80, 1.515e-6, 1, 1.122),
    (1 / 60, 200, 1.515e-6, 10, 0.541),
    (1 / 30, 100, 1.515e-6, 10, 0.594),
    (1 / 15, 100, 1.515e-6, 10, 0.742),
    (1 / 60, 200, 1.515e-6, 1, 1.324),
    (1 / 30, 100, 1.515e-6, 1, 1.724),
    (1 / 15, 100, 1.515e-6, 1, 3.031),
]


def mnist_plan(**changes):
    values = dict(
        sample_rate=1 / 30, steps=6000, noise_multiplier=1.472, max_grad_norm=1.0, delta=1e-5, expected_batch_size=2000
    )
    return PrivacyPlan(**{**values, **changes})


@pytest.mark.parametrize(("rate", "steps", "delta", "target", "sigma"), GOLDEN)
def test_calibration_gives_the_lineage_sigmas(rate, steps, delta, target, sigma):
    found = calibrate(target_epsilon=target, delta=delta, sample_rate=rate, steps=steps)
    assert found == pytest.approx(sigma, rel=0.01)
    spent = epsilon([(SamplingEvent(rate, found), steps)], delta)
    assert target * (1 - 1e-3) <= spent <= target


@pytest.mark.parametrize(("rate", "steps", "delta", "target", "sigma"), RECIPE)
def test_calibration_gives_the_recipe_sigmas(rate, steps, delta, target, sigma):
    assert calibrate(target_epsilon=target, delta=delta, sample_rate=rate, steps=steps) == pytest.approx(
        sigma, rel=0.01
    )


@pytest.mark.parametrize(
    ("rate", "steps", "delta", "sigma", "multiplicity", "true_epsilon"),
    [
        (1 / 30, 6000, 1e-5, 9.775, 12, 30.9),
        (1 / 30, 6000, 1e-5, 1.472, 12, 7698),
        (1 / 20, 400, 1e-5, 3.911, 2, 2.3),
        (1 / 20, 400, 1e-5, 0.826, 4, 377),
        (1 / 20, 400, 1e-6, 1.263, 4, 136),
        (1 / 12, 120, 1e-5, 0.801, 4, 269),
        (1 / 14, 140, 1e-5, 0.773, 8, 1298),
    ],
)
def test_clipping_the_copies_of_a_record_one_by_one_costs_what_is_published_about_it(
    rate, steps, delta, sigma, multiplicity, true_epsilon
):
    assert epsilon([(SamplingEvent(rate, sigma / multiplicity), steps)], delta) == pytest.approx(true_epsilon, rel=0.02)


@pytest.mark.parametrize(
    ("rate", "sigma", "steps"),
    [(1 / 30, 1.472, 6000), (1 / 25, 4.243, 750), (0.15, 0.903, 80), (1e-3, 0.7, 500), (1, 40, 300)],
)
def test_pld_equals_dp_accounting_on_its_finest_grid(rate, sigma, steps):
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    accountant.compose(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(sigma)), steps)
    assert epsilon([(SamplingEvent(rate, sigma), steps)], 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=2e-3)


@pytest.mark.parametrize(("rate", "sigma", "steps"), [(1 / 30, 1.472, 6000), (1 / 25, 4.243, 750), (0.15, 0.903, 80)])
def test_renyi_is_above_pld_and_prv_within_two_percent(rate, sigma, steps):
    history = [(SamplingEvent(rate, sigma), steps)]
    tight = epsilon(history, 1e-5, "pld")
    assert tight < epsilon(history, 1e-5, "rdp") < 1.25 * tight
    assert epsilon(history, 1e-5, "prv") == pytest.approx(tight, rel=0.02)


def test_unsampled_steps_are_one_gaussian():
    """sigma / sqrt(T) without sampling: the analytic Gaussian mechanism (Balle and Wang 2018, arXiv 1805.06530)."""

    def delta_at(eps, sigma):
        normal = lambda x: 0.5 * math.erfc(-x / math.sqrt(2))  # noqa: E731
        return normal(0.5 / sigma - eps * sigma) - math.exp(eps) * normal(-0.5 / sigma - eps * sigma)

    spent = epsilon([(SamplingEvent(1.0, 30.0), 400)], 1e-5)
    assert delta_at(spent, 30 / 20) == pytest.approx(1e-5, rel=0.02)


def test_replacing_a_record_costs_what_two_records_cost_without_sampling():
    add = epsilon([(SamplingEvent(1.0, 20.0), 100)], 1e-5)
    replace = epsilon([(SamplingEvent(1.0, 20.0, relation="replace_one"), 100)], 1e-5)
    assert replace == pytest.approx(add, rel=1e-3), "the multiplier is relative to 2C, so the Gaussians are the same"


def test_replacement_by_pld_is_between_one_and_two_additions():
    noise = 3.0  # in units of C
    replace = epsilon([(SamplingEvent(0.05, noise / 2, relation="replace_one"), 200)], 1e-5)
    assert epsilon([(SamplingEvent(0.05, noise), 200)], 1e-5) < replace
    # adding and removing: (eps, delta) twice in a row is (2 eps, (1 + e^eps) delta)
    half = epsilon([(SamplingEvent(0.05, noise), 200)], 1e-5 / 50)
    assert half < math.log(49)
    assert replace < 2 * half


def test_fixed_size_batches_have_a_renyi_analysis_only():
    event = SamplingEvent(0.03, 1.5, "without_replacement", "replace_one")
    assert accountants_for([(event, 1)]) == ("rdp",)
    accountant = rdp_library.RdpAccountant(neighboring_relation=rdp_library.NeighborRel.REPLACE_ONE)
    accountant.compose(dp_event.SampledWithoutReplacementDpEvent(100, 3, dp_event.GaussianDpEvent(1.5)), 200)
    assert epsilon([(event, 200)], 1e-5) == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-6)
    with pytest.raises(UserError, match="fixed-size"):
        epsilon([(event, 200)], 1e-5, "pld")


def test_fixed_size_batches_cost_more_than_poisson_batches():
    fixed = epsilon([(SamplingEvent(0.03, 1.5, "without_replacement", "replace_one"), 200)], 1e-5)
    assert fixed > epsilon([(SamplingEvent(0.03, 1.5, "poisson", "replace_one"), 200)], 1e-5)


def test_histories_compose_whatever_their_order():
    first, second = SamplingEvent(0.02, 1.1), SamplingEvent(0.05, 2.0)
    together = epsilon([(first, 300), (second, 200)], 1e-5)
    assert together == pytest.approx(epsilon([(second, 50), (first, 300), (second, 150)], 1e-5), rel=1e-9)
    assert together > max(epsilon([(first, 300)], 1e-5), epsilon([(second, 200)], 1e-5))
    assert together < epsilon([(first, 300)], 5e-6) + epsilon([(second, 200)], 5e-6)
    assert epsilon([(first, 300), (second, 200)], 1e-5, "prv") == pytest.approx(together, rel=0.02)


def test_nothing_costs_nothing_and_hardly_any_noise_is_no_privacy():
    assert epsilon([], 1e-5) == 0
    assert epsilon([(SamplingEvent(0.1, 1.0), 0)], 1e-5) == 0
    assert epsilon([(SamplingEvent(0.1, 1e-9), 1)], 1e-5) == math.inf


@settings(max_examples=6, deadline=None)
@given(
    rate=st.floats(1e-2, 0.5),
    sigma=st.floats(0.6, 20),
    steps=st.integers(1, 2000),
    delta=st.sampled_from([1e-4, 1e-6]),
)
def test_epsilon_falls_with_noise_and_rises_with_steps_and_rate(rate, sigma, steps, delta):
    base = epsilon([(SamplingEvent(rate, sigma), steps)], delta)
    slack = 1e-3 * base + 1e-9
    assert epsilon([(SamplingEvent(rate, sigma * 1.3), steps)], delta) <= base + slack
    assert epsilon([(SamplingEvent(rate, sigma), steps + 50)], delta) >= base - slack
    assert epsilon([(SamplingEvent(min(1, rate * 1.5), sigma), steps)], delta) >= base - slack
    assert base <= epsilon([(SamplingEvent(rate, sigma), steps)], delta, "rdp") + 1e-2


@settings(max_examples=6, deadline=None)
@given(rate=st.floats(5e-3, 0.3), target=st.floats(0.3, 12), steps=st.integers(10, 1000))
def test_calibration_never_overspends_and_hardly_underspends(rate, target, steps):
    sigma = calibrate(target_epsilon=target, delta=1e-5, sample_rate=rate, steps=steps)
    spent = epsilon([(SamplingEvent(rate, sigma), steps)], 1e-5)
    assert 0.995 * target <= spent <= target


@pytest.mark.parametrize("target", [0.02, 0.3, 1.0, 4.0, 8.0])
def test_the_search_for_the_noise_ends_below_the_target_on_any_curve(target):
    """Costs whose slope grows with the noise: secant steps then land a little above the target, time and again."""
    for power in (1, 2, 3):

        def spent(sigma, power=power):
            return 10 / (1 + sigma**power)

        too_little, enough = 0.05, 100.0 ** (3 / power)
        pairs = (too_little, spent(too_little)), (enough, spent(enough))
        found = spent(accounting._refine(spent, target, *pairs))
        assert (1 - accounting.TIGHTNESS) * target <= found <= target


def test_calibration_charges_history_first():
    past = [(SamplingEvent(0.05, 1.5), 100)]
    arguments = dict(target_epsilon=5, delta=1e-5, sample_rate=0.05, steps=100)
    alone, after = calibrate(**arguments), calibrate(**arguments, history=past)
    assert after > alone
    assert 4.99 < epsilon([*past, (SamplingEvent(0.05, after), 100)], 1e-5) <= 5
    with pytest.raises(UserError, match="already costs more than epsilon 1"):
        calibrate(**{**arguments, "target_epsilon": 1}, history=past)


@pytest.mark.slow
def test_calibration_for_every_relation_and_accountant():
    common = dict(target_epsilon=4, delta=1e-5, sample_rate=0.02, steps=300)
    pld = calibrate(**common)
    assert calibrate(**common, accountant="rdp") > pld
    assert calibrate(**common, accountant="prv") == pytest.approx(pld, rel=0.02)
    replace = calibrate(**common, relation="replace_one")
    assert pld / 2 < replace < pld, "noise in units of C is twice the multiplier"
    assert calibrate(**common, relation="replace_one", sampling="without_replacement") > replace


def test_a_target_that_cannot_be_met_is_an_error():
    with pytest.raises(UserError, match="cannot be met"):
        calibrate(target_epsilon=1e-9, delta=1e-12, sample_rate=1.0, steps=10**6)


def test_a_delta_that_allows_publishing_the_batch_is_an_error():
    with pytest.raises(UserError, match="almost no noise"):
        calibrate(target_epsilon=1, delta=2e-2, sample_rate=1e-2, steps=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: epsilon([(SamplingEvent(0.1, 1), 1)], 0), "delta"),
        (lambda: epsilon([(SamplingEvent(0.1, 1), 1)], 1), "delta"),
        (lambda: epsilon([(SamplingEvent(0.1, 1), 1)], 1e-5, "plb"), "did you mean 'pld'"),
        (lambda: epsilon([(SamplingEvent(0.1, 1), -1)], 1e-5), "count"),
        (lambda: epsilon([(SamplingEvent(1.0, 1), 1)], 1e-5, "prv"), "cannot judge"),
        (
            lambda: epsilon([(SamplingEvent(0.1, 1), 1), (SamplingEvent(0.1, 1, relation="replace_one"), 1)], 1e-5),
            "several neighbouring relations",
        ),
        (lambda: SamplingEvent(0.0, 1), "sample_rate"),
        (lambda: SamplingEvent(1.1, 1), "sample_rate"),
        (lambda: SamplingEvent(0.1, 0), "noise_multiplier"),
        (lambda: SamplingEvent(0.1, math.nan), "noise_multiplier"),
        (lambda: SamplingEvent(0.1, 1, "shuffled"), "sampling"),
        (lambda: SamplingEvent(0.1, 1, relation="add_or_remove"), "add_or_remove_one"),
        (lambda: SamplingEvent(0.1, 1, "without_replacement"), "replace_one"),
        (lambda: SamplingEvent.from_dict({"sample_rate": 0.1}), "exactly the keys"),
        (lambda: calibrate(target_epsilon=0, delta=1e-5, sample_rate=0.1, steps=1), "target epsilon"),
        (lambda: calibrate(target_epsilon=1, delta=1e-5, sample_rate=0.1, steps=0), "steps"),
    ],
)
def test_nonsense_is_refused_by_name(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_events_survive_a_round_trip():
    event = SamplingEvent(1 / 30, 1.472, "poisson", "replace_one")
    assert SamplingEvent.from_dict(event.to_dict()) == event


def test_the_meter_is_an_upper_bound_that_ends_at_the_plans_epsilon():
    plan = mnist_plan()
    meter = EpsilonMeter(plan)
    shown = {steps: meter(steps) for steps in (0, 1, 7, 600, 2999, 3000, 5999, 6000, 6500)}
    assert shown[0] == 0
    assert list(shown.values()) == sorted(shown.values())
    for steps in (1, 600, 2999, 6500):
        assert shown[steps] >= epsilon([(plan.event(), steps)], plan.delta) * (1 - 1e-6)
    assert shown[6000] == pytest.approx(plan.epsilon(), rel=1e-9)
    assert shown[600] < 1.15 * epsilon([(plan.event(), 600)], plan.delta), "tight enough to be shown"


@settings(max_examples=10, deadline=None)
@given(rate=st.floats(2e-3, 0.3), sigma=st.floats(0.6, 8), steps=st.integers(1, 400), at=st.integers(0, 500))
def test_the_meter_is_never_below_the_exact_value(rate, sigma, steps, at):
    plan = mnist_plan(sample_rate=rate, noise_multiplier=sigma, steps=steps)
    meter, exact = EpsilonMeter(plan), epsilon([(plan.event(), at)], plan.delta)
    assert meter(at) >= exact * (1 - 1e-3) - 1e-6


def test_the_meter_charges_history_and_knows_every_relation():
    past = [(SamplingEvent(0.05, 1.2), 100)]
    plan = mnist_plan(steps=100)
    meter = EpsilonMeter(plan, history=past)
    assert meter(0) >= epsilon(past, plan.delta) * (1 - 1e-6)
    assert meter(50) >= epsilon([*past, (plan.event(), 50)], plan.delta) * (1 - 1e-6)
    for sampling in ("poisson", "without_replacement"):
        other = mnist_plan(steps=40, relation="replace_one", sampling=sampling)
        assert EpsilonMeter(other)(40) == pytest.approx(other.epsilon(), rel=1e-6)


def test_the_meter_costs_less_than_a_millisecond_a_call():
    meter = EpsilonMeter(mnist_plan(steps=2000))
    meter(1)
    started = time.process_time()
    for steps in range(1, 2001):
        meter(steps)
    assert (time.process_time() - started) / 2000 < 1e-3


def test_the_meters_fast_renyi_conversion_is_the_librarys():
    event = SamplingEvent(1 / 30, 1.472)
    orders = rdp_library.DEFAULT_RDP_ORDERS
    for steps in (1, 100, 6000):
        mine = meter._fast_epsilon(np.array(orders), steps * accounting.rdp_vector(event), 1e-5)
        assert mine == pytest.approx(epsilon([(event, steps)], 1e-5, "rdp"), rel=1e-9)


def test_thousands_of_steps_are_judged_in_well_under_a_second():
    event = SamplingEvent(1 / 30, 1.472)
    epsilon([(event, 1)], 1e-5)
    started = time.process_time()
    epsilon([(event, 6000)], 1e-5)
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("event", "history"),
    [
        (SamplingEvent(0.25, 1.2), []),
        (SamplingEvent(0.1, 1.0, relation="replace_one"), []),
        (SamplingEvent(0.2, 2.0), [(SamplingEvent(1.0, 8.0), 2)]),
        (SamplingEvent(1.0, 9.0), []),
        (SamplingEvent(0.2, 3.0, "without_replacement", "replace_one"), []),
    ],
)
def test_every_point_of_a_curve_is_exact(event: SamplingEvent, history: list) -> None:
    counts = [0, 1, 2, 7, 30]
    curve = accounting.epsilon_curve(event, counts, 1e-5, history)
    assert [count for count, _ in curve] == counts
    for count, value in curve:
        assert value == pytest.approx(epsilon([*history, (event, count)], 1e-5), rel=2e-3, abs=1e-9)
    assert len({value for _, value in curve}) == len(counts), "no stairs"


@pytest.mark.parametrize(
    ("rate", "noise", "count"), [(0.1, 1.0, 10**20), (1e-320, 1.0, 10)], ids=["10^20 steps", "a rate of zero"]
)
def test_numbers_beyond_an_accountant_are_one_line(rate, noise, count):
    with pytest.raises(UserError, match="pld accountant cannot compute with these numbers"):
        epsilon([(SamplingEvent(rate, noise), count)], 1e-5, "pld")
