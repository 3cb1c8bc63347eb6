"""A ledger in other terms: chances of a membership guess, Gaussian DP, and the other neighbouring relation.

Every number is an upper bound for an attacker who knows all records but one and sees the whole release.
It follows from the ledger alone and reads no record.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import brentq
from scipy.special import ndtr

from ldm.errors import UserError
from ldm.privacy.accounting import Spending, accountants_for, epsilon, joint_epsilon, privacy_loss
from ldm.privacy.event import ADD_OR_REMOVE_ONE, POISSON, REPLACE_ONE, History

#: Epsilons whose (epsilon, delta) pairs bound the trade-off curve; the least bound on the true positive rate is used.
_GRID = np.concatenate([np.linspace(0.0, 4.0, 81), np.linspace(4.25, 30.0, 104)])


@dataclass(frozen=True)
class Interpretation:
    """A ledger in terms for people who do not work with epsilon.

    ``guess``: largest chance, 0.5 to 1, that an attacker guesses correctly whether a record was in the training set
    (prior one half). ``rate_at_one_percent``: largest share of members that an attack recognises when it accuses one
    non-member in a hundred (TPR at 1 % FPR). ``gaussian_mu``: the mu of the Gaussian mechanism with the same epsilon at
    the same delta (Dong, Roth, Su 2019, arXiv 1905.02383, corollary 2.13). ``other_relation`` and ``other_epsilon``:
    the other neighbouring relation and epsilon at the same delta under it, None where no accountant has an analysis.
    """

    guess: float
    rate_at_one_percent: float
    gaussian_mu: float
    other_relation: str
    other_epsilon: float | None


def interpret(spendings: Sequence[Spending], delta: float) -> Interpretation:
    """Read what all runs have spent at ``delta`` in (0, 1).

    Where no privacy loss distribution exists (batches of fixed size, a selection among runs) guess and rate follow from
    the (epsilon, delta) pairs of the Renyi accountant. Raises UserError for a history under several relations.
    """
    deltas = _deltas(spendings)
    events = [entry for own, _ in spendings for entry in own]
    relation = events[0][0].relation if events else ADD_OR_REMOVE_ONE
    other = REPLACE_ONE if relation == ADD_OR_REMOVE_ONE else ADD_OR_REMOVE_ONE
    return Interpretation(
        guess=0.5 + 0.5 * float(np.min((np.exp(_GRID) - 1 + 2 * deltas) / (np.exp(_GRID) + 1))),
        rate_at_one_percent=true_positive_rate(deltas, 0.01),
        gaussian_mu=gaussian_mu(joint_epsilon(spendings, delta), delta),
        other_relation=other,
        other_epsilon=_under(events, delta, other) if _composes_exactly(spendings) else None,
    )


def true_positive_rate(deltas: np.ndarray, false_positive_rate: float) -> float:
    """Largest true positive rate at a false positive rate in [0, 1], from delta at each epsilon of the grid.

    (epsilon, delta)-DP gives TPR <= e^epsilon FPR + delta and 1 - FPR <= e^epsilon (1 - TPR) + delta (Kairouz, Oh,
    Viswanath 2015, arXiv 1311.0776); the smallest of all these bounds holds.
    """
    rates = np.minimum(
        np.exp(_GRID) * false_positive_rate + deltas, 1 - np.exp(-_GRID) * (1 - false_positive_rate - deltas)
    )
    return float(np.clip(rates.min(), 0.0, 1.0))


def gaussian_mu(spent: float, delta: float) -> float:
    """The mu whose Gaussian mechanism is exactly (``spent``, ``delta``)-DP; 0 for epsilon 0, infinity for infinity."""
    if spent <= 0 or math.isinf(spent):
        return 0.0 if spent <= 0 else math.inf

    def excess(mu: float) -> float:
        # Balle and Wang 2018, arXiv 1805.06530, theorem 5; the second product in logarithms, since e^epsilon overflows
        second = math.exp(min(spent + _log_ndtr(-spent / mu - mu / 2), 0.0))
        return float(ndtr(-spent / mu + mu / 2)) - second - delta

    high = 1.0
    while excess(high) < 0:
        high *= 2
    return float(brentq(excess, 1e-6, high, xtol=1e-9))


def _log_ndtr(x: float) -> float:
    from scipy.special import log_ndtr

    return float(log_ndtr(x))


def _composes_exactly(spendings: Sequence[Spending]) -> bool:
    """Whether no run was selected among others, so that the events alone say what was spent."""
    return all(selection is None for _, selection in spendings)


def _deltas(spendings: Sequence[Spending]) -> np.ndarray:
    """delta(epsilon) of all runs together at each epsilon of the grid."""
    events = [entry for own, _ in spendings for entry in own]
    if not events:
        return np.zeros_like(_GRID)
    if _composes_exactly(spendings) and "pld" in accountants_for(events):
        loss = privacy_loss(events)
        return np.ones_like(_GRID) if loss is None else np.asarray([loss.get_delta_for_epsilon(e) for e in _GRID])
    # the Renyi accountant gives epsilon at a delta, so each delta gives one point of the curve
    points = [(joint_epsilon(spendings, delta), delta) for delta in np.logspace(-12, -0.5, 24)]
    return np.asarray([min([delta for spent, delta in points if spent <= e], default=1.0) for e in _GRID])


def _under(events: History, delta: float, relation: str) -> float | None:
    """Epsilon of the same noise under another relation: sensitivity is C for add/remove, 2C for replace."""
    if any(event.sampling != POISSON for event, _ in events):
        return None
    factor = 0.5 if relation == REPLACE_ONE else 2.0
    try:
        moved = [
            (replace(event, relation=relation, noise_multiplier=event.noise_multiplier * factor), count)
            for event, count in events
        ]
        return epsilon(moved, delta)
    except UserError:
        return None
