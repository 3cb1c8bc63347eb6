"""The price of a private selection, against exact laws of the best of K runs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from dp_accounting.rdp import rdp_privacy_accountant as rdp_library
from scipy.integrate import quad
from scipy.stats import norm

from ldm.errors import UserError
from ldm.privacy.accounting import calibrate, epsilon, joint_epsilon
from ldm.privacy.card import ReleaseCard
from ldm.privacy.event import SamplingEvent
from ldm.privacy.interpretation import interpret
from ldm.privacy.ledger import Ledger
from ldm.privacy.meter import EpsilonMeter
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.selection import Selection

ETAS = (-0.5, 0.0, 0.5, 1.0, 3.0)
ORDERS = np.array(rdp_library.DEFAULT_RDP_ORDERS)
EVENT = SamplingEvent(0.1, 1.5)
PLAN = PrivacyPlan(0.1, 40, 1.5, 1.0, 1e-5, 100)


@pytest.mark.parametrize("eta", ETAS)
def test_the_chances_add_up_to_one_and_to_the_mean(eta: float) -> None:
    selection = Selection.with_mean(6, eta)
    chances = [selection.chance(runs) for runs in range(1, 1500)]
    assert min(chances) >= 0 and sum(chances) == pytest.approx(1, abs=1e-6)
    assert sum(runs * chance for runs, chance in enumerate(chances, 1)) == pytest.approx(6, rel=1e-4)
    assert selection.mean == pytest.approx(6)


def test_one_is_the_geometric_distribution() -> None:
    selection = Selection(1.0, 0.25)
    assert [selection.chance(runs) for runs in (1, 2, 3)] == pytest.approx([0.25, 0.75 * 0.25, 0.75**2 * 0.25])


@pytest.mark.parametrize("eta", ETAS)
def test_the_drawn_numbers_follow_the_chances(eta: float) -> None:
    selection, generator = Selection.with_mean(4, eta), np.random.default_rng(0)
    drawn = np.array([selection.draw(generator) for _ in range(4000)])
    for runs in (1, 2, 5):
        chance = selection.chance(runs)
        assert abs(np.mean(drawn == runs) - chance) < 4 * math.sqrt(chance * (1 - chance) / 4000)
    assert drawn.min() == 1


def best_law(selection: Selection, level: np.ndarray) -> np.ndarray:
    """P[the best of K runs is at most x] where one run is so with chance ``level``: the generating function of K."""
    eta, gamma = selection.eta, selection.gamma
    if eta == 0:
        return np.log1p(-(1 - gamma) * level) / math.log(gamma)
    return ((1 - (1 - gamma) * level) ** -eta - 1) / (gamma**-eta - 1)


def slope(selection: Selection, level: float) -> float:
    """The derivative of `best_law`, the density of the best over that of one run."""
    eta, gamma = selection.eta, selection.gamma
    rest = 1 - (1 - gamma) * level
    if eta == 0:
        return (1 - gamma) / rest / -math.log(gamma)
    return eta * (1 - gamma) * rest ** (-eta - 1) / (gamma**-eta - 1)


@pytest.mark.parametrize("eta", ETAS)
def test_the_generating_function_is_that_of_the_chances(eta: float) -> None:
    selection = Selection.with_mean(3, eta)
    for level in (0.0, 0.3, 0.9, 1.0):
        series = sum(selection.chance(runs) * level**runs for runs in range(1, 800))
        assert float(best_law(selection, np.array(level))) == pytest.approx(series, abs=1e-6)


@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("shift", [0.3, 1.0])
@pytest.mark.parametrize("order", [2.0, 5.0, 20.0])
def test_the_bound_holds_for_the_exact_law_of_the_largest_of_k_gaussians(
    eta: float, shift: float, order: float
) -> None:
    """One run is N(0, 1) or N(shift, 1), its own value is its score: the divergence of the best is an integral."""
    selection = Selection.with_mean(8, eta)

    def density(x: float, mean: float) -> float:
        return norm.pdf(x - mean) * slope(selection, float(norm.cdf(x - mean)))

    for one, other in ((0.0, shift), (shift, 0.0)):
        moment = quad(
            lambda x, one=one, other=other: math.exp(
                order * math.log(max(density(x, one), 1e-300)) - (order - 1) * math.log(max(density(x, other), 1e-300))
            ),
            -12,
            14,
            limit=400,
        )[0]
        exact = math.log(moment) / (order - 1)
        renyi = ORDERS * shift**2 / 2  # of one run, at every order
        bound = float(np.interp(order, ORDERS, selection.renyi(ORDERS, renyi)))
        assert exact <= bound * (1 + 1e-6)
        assert bound < 12 * exact + 3, "a bound, not a number that is large enough for anything"


def test_the_formula_is_the_theorems_written_out() -> None:
    selection, spent = Selection(0.5, 0.1), 0.02 * ORDERS
    found = selection.renyi(ORDERS, spent)
    for place in (3, 40, 120):
        others = [
            spent[place]
            + 1.5 * (1 - 1 / order) * value
            + 1.5 * math.log(10) / order
            + math.log(0.5 * 0.9 / (0.1 * (1 - 0.1**0.5))) / (ORDERS[place] - 1)
            for order, value in zip(ORDERS, spent, strict=True)
        ]
        assert found[place] == pytest.approx(min(others))


def test_a_selection_costs_more_than_one_run_and_less_than_its_mean_number_of_runs() -> None:
    one = epsilon([(EVENT, 40)], 1e-5, "rdp")
    costs = [joint_epsilon([([(EVENT, 40)], Selection.with_mean(runs, 1.0))], 1e-5) for runs in (2, 10, 100)]
    assert one < costs[0] < costs[1] < costs[2]
    assert costs[2] < epsilon([(EVENT, 40 * 100)], 1e-5, "rdp")
    assert costs[1] < 3.2 * one, "Liu and Talwar's factor three, about"


def test_other_runs_add_to_a_selection() -> None:
    selected = ([(EVENT, 40)], Selection.with_mean(5))
    together = joint_epsilon([selected, ([(EVENT, 40)], None)], 1e-5)
    assert joint_epsilon([selected], 1e-5) < together
    assert joint_epsilon([([(EVENT, 20)], None), ([(EVENT, 20)], None)], 1e-5) == epsilon([(EVENT, 40)], 1e-5)
    assert joint_epsilon([], 1e-5) == 0


def test_noise_is_calibrated_for_the_selected_run() -> None:
    selection = Selection.with_mean(10)
    sigma = calibrate(target_epsilon=3, delta=1e-5, sample_rate=0.1, steps=40, selection=selection)
    plan = replace(PLAN, noise_multiplier=sigma, selection=selection)
    assert 2.99 < plan.epsilon() <= 3
    assert sigma > calibrate(target_epsilon=3, delta=1e-5, sample_rate=0.1, steps=40)
    assert EpsilonMeter(plan)(40) == pytest.approx(plan.epsilon()) and 0 < EpsilonMeter(plan)(1) < plan.epsilon()


def test_a_plan_and_a_card_carry_it(tmp_path) -> None:
    plan = replace(PLAN, selection=Selection.with_mean(4, 0.0))
    assert PrivacyPlan.from_dict(plan.to_dict()) == plan and "selection" not in PLAN.to_dict()
    assert set(plan.differences(PLAN)) == {"selection"}
    ledger = Ledger()
    ledger.record(plan.event(), 40)
    ReleaseCard(plan, ledger).write(tmp_path / "privacy.json")
    card = ReleaseCard.read(tmp_path / "privacy.json")
    assert card.plan == plan and set(card.epsilons()) == {"rdp"}
    assert card.epsilons()["rdp"] == pytest.approx(plan.epsilon()) and plan.epsilon() > PLAN.epsilon()
    assert "secret, random number of runs" in card.statement()
    text = (tmp_path / "privacy.json").read_text()
    (tmp_path / "privacy.json").write_text(text.replace('"selection"', '"_selection"'))
    with pytest.raises(UserError, match="_selection"):
        ReleaseCard.read(tmp_path / "privacy.json")
    meaning = interpret(card.spendings, plan.delta)
    alone = interpret([([(plan.event(), 40)], None)], plan.delta)
    assert meaning.guess > alone.guess and meaning.gaussian_mu > alone.gaussian_mu and meaning.other_epsilon is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Selection(-1.0, 0.5), "selection eta"),
        (lambda: Selection(1.0, 1.0), "must be below 1"),
        (lambda: Selection.with_mean(1.0), "expected runs"),
        (lambda: Selection.from_dict({"eta": 1.0}), "expected the keys eta and gamma"),
    ],
)
def test_nonsense_is_refused(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()


def test_an_eta_beyond_computation_is_refused():
    with pytest.raises(UserError, match=r"selection eta is 1e\+20, it must be a number above -1 and at most 100"):
        Selection.with_mean(2.0, 1e20)
