"""The privacy cost of a sequence of noised steps: epsilon of a history, and the noise for a target epsilon.

Three accountants give an upper bound on the same number:

* ``pld``: privacy loss distributions of dp_accounting (Doroshenko et al. 2022, arXiv 2207.04380), the tight default;
* ``rdp``: Renyi differential privacy (Mironov et al. 2019, arXiv 1908.10530; Wang et al. 2019, arXiv 1808.00087);
* ``prv``: the numerical composition of opacus (Gopi et al. 2021, arXiv 2106.02848), the accountant of the lineage.

Each accountant covers some kinds of sampling and neighbouring relations, see :func:`accountants_for`. Nothing here sees
data; every argument is a public constant. The library is imported late, for programs that only read a plan and sample.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from ldm.errors import UserError
from ldm.privacy.event import (
    ADD_OR_REMOVE_ONE,
    POISSON,
    REPLACE_ONE,
    WITHOUT_REPLACEMENT,
    History,
    SamplingEvent,
    sensitivity,
)
from ldm.privacy.libraries import quiet, within_range
from ldm.privacy.selection import Selection
from ldm.privacy.validate import number, one_of, whole

ACCOUNTANTS = ("pld", "prv", "rdp")

#: A calibrated epsilon lies in [(1 - this) * target, target].
TIGHTNESS = 1e-3


def accountants_for(events: History) -> tuple[str, ...]:
    """The accountants that have an analysis of this history, the tightest first.

    Batches of fixed size have a Renyi analysis only; Poisson batches under replace-one have a PLD only; a query
    of all records is a plain Gaussian mechanism, for which opacus' PRV has no formula.
    """
    known = ["pld", "prv", "rdp"]
    for event, _ in events:
        if event.sampling == WITHOUT_REPLACEMENT:
            able = {"rdp"}
        elif event.sample_rate == 1:
            able = {"pld", "rdp"}
        elif event.relation == REPLACE_ONE:
            able = {"pld"}
        else:
            able = {"pld", "prv", "rdp"}
        known = [name for name in known if name in able]
    return tuple(known)


def epsilon(events: History, delta: float, accountant: str | None = None) -> float:
    """Epsilon at ``delta`` of the adaptive composition of ``events``, pairs of an event and how often it happened.

    An upper bound under the events' own relation; 0 for an empty history; infinite where the noise is too small for
    any bound. ``accountant`` None takes the tightest that applies.

    Raises UserError when delta is not in (0, 1), when relations are mixed, or when the accountant has no analysis of an
    event.
    """
    number("delta", delta, above=0)
    if delta >= 1:
        raise UserError(f"delta is {delta!r}, it must be below 1, and far below 1 / number of records to mean anything")
    history = merge_history(events)
    if not history:
        return 0.0
    able = accountants_for(history)
    if accountant is not None:
        one_of("accountant", accountant, ACCOUNTANTS)
    if not able or (accountant or able[0]) not in able:
        raise UserError(
            f"accountant {accountant or 'any'} cannot judge this history; able: {', '.join(able) or 'none'}"
            " (fixed-size batches: rdp; Poisson with replace_one: pld)"
        )
    compute = {"pld": _pld_epsilon, "prv": _prv_epsilon, "rdp": _rdp_epsilon}[accountant or able[0]]
    with within_range(accountant or able[0]):
        return max(0.0, float(compute(history, delta)))


#: What one run, or one selection among runs, has done to the records: its events, and the selection if there was one.
Spending = tuple[History, Selection | None]


def joint_epsilon(spendings: Sequence[Spending], delta: float) -> float:
    """Epsilon at ``delta`` of the composition of several runs on the same records, selections among them included.

    With a selection the Renyi accountant is the only one that applies. Raises UserError as :func:`epsilon`.
    """
    from dp_accounting.rdp import rdp_privacy_accountant as rdp_library

    history = [entry for events, _ in spendings for entry in events]
    if all(selection is None for _, selection in spendings):
        return epsilon(history, delta)
    epsilon(history, delta, "rdp")  # checks delta, the relations, and that every event has a Renyi analysis
    orders = np.array(rdp_library.DEFAULT_RDP_ORDERS)
    total = np.zeros(len(orders))
    for events, selection in spendings:
        own = sum((count * rdp_vector(event) for event, count in events), np.zeros(len(orders)))
        total += own if selection is None or not events else selection.renyi(orders, own)
    return max(0.0, float(rdp_library.compute_epsilon(orders, total, delta)[0])) if history else 0.0


def merge_history(events: History) -> list[tuple[SamplingEvent, int]]:
    """Equal events summed (the order is irrelevant to composition); relations checked."""
    counts: Counter[SamplingEvent] = Counter()
    for event, count in events:
        whole("count", count, at_least=0)
        counts[event] += count
    history = [(event, count) for event, count in counts.items() if count]
    relations = {event.relation for event, _ in history}
    if len(relations) > 1:
        raise UserError(f"a history under several neighbouring relations has no single epsilon: {sorted(relations)}")
    return history


# --- privacy loss distributions ------------------------------------------------------------------------------------


def deltas(events: History, epsilons: Sequence[float]) -> list[float]:
    """The least delta at each of ``epsilons`` >= 0, by privacy loss distributions: the whole curve of a history.

    Upper bounds, each the larger of both directions of the relation. Raises UserError for a history that has no
    privacy loss distribution (batches of fixed size).
    """
    history = merge_history(events)
    if not history:
        return [0.0] * len(epsilons)
    if "pld" not in accountants_for(history):
        raise UserError("batches of fixed size have no privacy loss distribution, so no curve; use Poisson batches")
    with within_range("pld"):
        composed = privacy_loss(history)
        if composed is None:
            return [1.0] * len(epsilons)
        return [float(delta) for delta in composed.get_delta_for_epsilon(list(epsilons))]


def _pld_epsilon(history: History, delta: float) -> float:
    composed = privacy_loss(history)
    return math.inf if composed is None else float(composed.get_epsilon_for_delta(delta))


def privacy_loss(events: History) -> Any:
    """The privacy loss distribution of a history, which gives delta at every epsilon and epsilon at every delta.

    None where the noise is too small for any bound. ``pld`` must have an analysis of the events.
    """
    history = merge_history(events)
    if min(_std_over_clip(event) for event, _ in history) < _SMALLEST_STD:
        return None
    interval = min(_interval(event, count) for event, count in history)
    composed: Any = None
    for event, count in history:
        part = _pld(event, count, interval)
        composed = part if composed is None else composed.compose(part)
    return composed


#: Below this noise (in units of C) one step alone costs an epsilon in the thousands; the grids would not fit in memory.
_SMALLEST_STD = 0.02


def _std_over_clip(event: SamplingEvent) -> float:
    """Noise standard deviation in units of C, under either relation."""
    return event.noise_multiplier * sensitivity(1.0, event.relation)


def _composed_std(event: SamplingEvent, count: int) -> tuple[float, float, int]:
    """Noise over C, sampling rate and count to compose numerically; unsampled Gaussians compose to one Gaussian."""
    std = _std_over_clip(event)
    return (std / math.sqrt(count), 1.0, 1) if event.sample_rate == 1 else (std, event.sample_rate, count)


def _interval(event: SamplingEvent, count: int) -> float:
    """Grid width of the privacy loss: a twentieth of one step's spread, unless that grid would be very long.

    The estimate is pessimistic for every width ("connect the dots"), so the width affects time and tightness only; the
    error is about 0.02 % at a twentieth and grows with the square of the width.
    """
    std, rate, count = _composed_std(event, count)
    inverse = 1 / std
    spread = rate * math.sqrt(math.expm1(min(inverse**2, 50.0)))
    largest = 10 * inverse + inverse**2 / 2  # loss of an unsampled step at ten standard deviations
    single = math.log1p(rate * math.expm1(largest)) if largest < 500 else largest
    composed = count * rate * inverse**2 / 2
    return max(min(spread / 20, 1e-2), single / 1e5, composed / 2e6)


def _pld(event: SamplingEvent, count: int, interval: float) -> Any:
    from dp_accounting.pld import privacy_loss_distribution as pld_library

    std, rate, count = _composed_std(event, count)
    single = pld_library.from_gaussian_mechanism(
        standard_deviation=std,
        value_discretization_interval=interval,
        sampling_prob=rate,
        neighboring_relation=_relation_of_library(event),
    )
    return single.self_compose(count) if count > 1 else single


def epsilon_curve(
    event: SamplingEvent, counts: Sequence[int], delta: float, history: History = ()
) -> list[tuple[int, float]]:
    """(count, epsilon) for each number of steps ``event`` after ``history``, by the tightest accountant.

    Each value is that of :func:`epsilon` for this number of steps (up to the accountant's grid), not a bound taken from
    another number. The distribution of one step is computed once.
    """
    accountants = accountants_for([*history, (event, 1)])
    if "pld" not in accountants or _std_over_clip(event) < _SMALLEST_STD:
        return [(count, epsilon([*history, (event, count)], delta)) for count in counts]
    before = merge_history(history)
    most = max([*counts, 1])
    interval = min(_interval(*entry) for entry in [*before, (event, most)])
    base: Any = None
    for entry in before:
        part = _pld(*entry, interval)
        base = part if base is None else base.compose(part)
    single = _pld(event, 1, interval)
    found = []
    for count in counts:
        if event.sample_rate == 1:
            steps = _pld(event, count, interval) if count else None
        else:
            steps = single.self_compose(count) if count else None
        parts = [part for part in (base, steps) if part is not None]
        total = parts[0].compose(parts[1]) if len(parts) == 2 else parts[0] if parts else None
        found.append((count, 0.0 if total is None else max(0.0, float(total.get_epsilon_for_delta(delta)))))
    return found


# --- Renyi and PRV -------------------------------------------------------------------------------------------------


def _relation_of_library(event: SamplingEvent) -> Any:
    from dp_accounting.privacy_accountant import NeighboringRelation

    theirs = (NeighboringRelation.ADD_OR_REMOVE_ONE, NeighboringRelation.REPLACE_ONE)
    return dict(zip((ADD_OR_REMOVE_ONE, REPLACE_ONE), theirs, strict=True))[event.relation]


def _rdp_epsilon(history: History, delta: float) -> float:
    from dp_accounting.rdp import rdp_privacy_accountant as rdp_library

    orders = np.array(rdp_library.DEFAULT_RDP_ORDERS)
    total = sum((count * rdp_vector(event) for event, count in history), np.zeros(len(orders)))
    return float(rdp_library.compute_epsilon(orders, total, delta)[0])


@cache  # takes a third of a second, and every release of a run needs the same event
def rdp_vector(event: SamplingEvent) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Renyi divergence of one step at dp_accounting's default orders; noise is relative to the full sensitivity."""
    from dp_accounting import dp_event
    from dp_accounting.rdp import rdp_privacy_accountant as rdp_library

    gaussian = dp_event.GaussianDpEvent(event.noise_multiplier)
    if event.sample_rate == 1 and event.sampling == POISSON:
        step: Any = gaussian
    elif event.sampling == POISSON:
        step = dp_event.PoissonSampledDpEvent(event.sample_rate, gaussian)
    else:
        # Only the ratio of these two integers is used; rounding up keeps the bound valid.
        scale = 2**40
        step = dp_event.SampledWithoutReplacementDpEvent(scale, math.ceil(event.sample_rate * scale), gaussian)
    accountant = rdp_library.RdpAccountant(neighboring_relation=_relation_of_library(event))
    with quiet():
        accountant.compose(step)
    return np.asarray(accountant.rdp, dtype=np.float64)


def _prv_epsilon(history: History, delta: float) -> float:
    from opacus.accountants import PRVAccountant  # slow to import, and used as a second opinion only

    accountant = PRVAccountant()
    accountant.history = [(event.noise_multiplier, event.sample_rate, count) for event, count in history]
    with quiet():
        return float(accountant.get_epsilon(delta))


# --- calibration ---------------------------------------------------------------------------------------------------


def calibrate(
    *,
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    relation: str = ADD_OR_REMOVE_ONE,
    sampling: str = POISSON,
    accountant: str | None = None,
    history: History = (),
    others: Sequence[Spending] = (),
    selection: Selection | None = None,
) -> float:
    """Smallest noise multiplier (up to 0.1 % of epsilon) with which ``steps`` steps after ``history`` meet the target.

    The result satisfies ``(1 - 1e-3) * target <= epsilon(history + steps) <= target`` by evaluation, not by formula.
    ``history`` belongs to the run, ``others`` to other runs on the same records. With a ``selection`` the target is met
    by the best of a random number of such runs.

    Raises UserError when no noise meets the target, or when any noise would.
    """
    number("target epsilon", target_epsilon, above=0)
    whole("steps", steps)

    def spent(sigma: float) -> float:
        event = SamplingEvent(sample_rate, sigma, sampling, relation)
        run = [*history, (event, steps)]
        if others or selection is not None:
            return joint_epsilon([*others, (run, selection)], delta)
        return epsilon(run, delta, accountant)

    before = joint_epsilon([*others, (history, selection)], delta) if others or history else 0.0
    if before >= target_epsilon:
        raise UserError(
            f"what was released already costs more than epsilon {target_epsilon:g}: raise the target or stop here"
        )
    return least_noise(spent, target_epsilon)


def least_noise(spent: Callable[[float], float], target_epsilon: float) -> float:
    """Smallest noise multiplier (up to 0.1 % of epsilon) at which ``spent``, epsilon by noise multiplier, is in budget.

    ``spent`` falls. Raises UserError when no noise meets the target, or when any noise would.
    """
    low, high = _bracket(spent, target_epsilon)
    return _refine(spent, target_epsilon, low, high)


def _bracket(spent: Callable[[float], float], target: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """Two (sigma, epsilon) pairs around the target: too little noise, enough noise."""
    sigma, factor = 1.0, 2.0
    value = spent(sigma)
    if value > target:
        while value > target:
            low = (sigma, value)
            if sigma > 1e6:
                raise UserError(
                    f"epsilon {target:g} cannot be met with any noise at this delta: raise epsilon or delta"
                )
            sigma, factor = sigma * factor, min(factor * 2, 8.0)
            value = spent(sigma)
        return low, (sigma, value)
    while value <= target:
        high = (sigma, value)
        if sigma < 0.05:
            raise UserError(
                f"epsilon {target:g} would be met with almost no noise (noise multiplier below {sigma:g}): this delta "
                "is as large as the chance of a record to be used at all, or the target means nothing; lower them"
            )
        sigma /= 1.5
        value = spent(sigma)
    return (sigma, value), high


def _refine(
    spent: Callable[[float], float], target: float, low: tuple[float, float], high: tuple[float, float]
) -> float:
    """Secant steps in logarithms, halved when they gain too little; ends on the side with enough noise."""
    aim = target * (1 - TIGHTNESS / 3)
    for attempt in range(60):
        if high[1] >= target * (1 - TIGHTNESS):
            return high[0]
        share = 0.5
        if attempt % 3 < 2 and high[1] > 0 and math.isfinite(low[1]):
            share = math.log(low[1] / aim) / math.log(low[1] / high[1])
        share = min(max(share, 1e-3), 1 - 1e-3)
        sigma = low[0] * (high[0] / low[0]) ** share
        value = spent(sigma)
        if value <= target:
            high = (sigma, value)
        else:
            low = (sigma, value)
    return high[0]
