"""Many small pairs of neighbouring data sets side by side: an audit of how batches are drawn.

Canaries with coordinates of their own measure noise and clipping, but not whether batches are independent draws. If no
other record moves the coordinate, a shuffled epoch looks like a Poisson one. It does not if all other records move the
coordinate by -C (Chua et al. 2024, arXiv 2403.17673; measured in arXiv 2411.10614), because all batches of one size
then have the same sum, except the canary's batch. So each of P coordinates here is a data set of its own, with 1/q - 1
records that move it by -C and, by a fair coin, one canary that moves it by +C. Every data set has its own sampler, and
all of them share one clipper and one noise source, whose coordinates are independent.

The P outcomes are independent for every sampler, so ordinary confidence limits hold. Half of the data sets choose among
the statistics and thresholds; the other half counts how often the chosen test says "present" for data sets with the
canary (a of A) and without (b of B). By Clopper and Pearson the true chances are at least a' and at most b', each up to
half of 1 - confidence. Differential privacy demands a' <= e^epsilon b' + delta, so epsilon >= log((a' - delta) / b').
The same holds for "absent"; the first half chooses between the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.special import betaincinv

from ldm.errors import UserError
from ldm.privacy.audit.canaries import Bits, Floats, WithCanaries, rows_of_canaries
from ldm.privacy.audit.mechanism import Mechanism
from ldm.privacy.audit.result import AuditResult
from ldm.privacy.audit.scores import Values, fixed_size_ratio, poisson_ratio
from ldm.privacy.event import ADD_OR_REMOVE_ONE, POISSON
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.validate import number, whole

_THRESHOLDS = 400


def audit_pairs(
    plan: PrivacyPlan,
    *,
    pairs: int = 2000,
    confidence: float = 0.95,
    mechanism: Mechanism | None = None,
    seed: int | None = None,
) -> AuditResult:
    """Bound epsilon from below on ``pairs`` small data sets of 1/q records, with the mechanism's own sampler.

    Valid for any sampler, clipper and noise whose coordinates are independent. The bound cannot exceed about
    ``log(pairs/15)``, so it says little about a large epsilon; its purpose is to find batches that are not independent
    draws. Time grows with ``pairs`` times ``plan.steps``. ``seed`` fixes the coins (tests only).

    Raises UserError unless the plan is a Poisson one under ``add_or_remove_one`` with a rate below 1.
    """
    whole("pairs", pairs, at_least=8)
    number("confidence", confidence, above=0, at_most=1 - 1e-12)
    if plan.sampling != POISSON or plan.relation != ADD_OR_REMOVE_ONE or plan.sample_rate == 1:
        raise UserError(
            f"pairs judge Poisson plans under {ADD_OR_REMOVE_ONE} with a sample rate below 1; this one draws "
            f"{plan.sampling} batches under {plan.relation} at rate {plan.sample_rate:g}"
        )
    mechanism = mechanism or Mechanism()
    helpers = max(1, round(1 / plan.sample_rate) - 1)
    present = np.random.default_rng(seed).random(pairs) < 0.5
    values, claimed = _run(plan, mechanism, present, helpers)
    scores = {
        "likelihood ratio under Poisson draws": poisson_ratio(values, plan, helpers),
        "likelihood ratio under shuffled epochs": fixed_size_ratio(values, plan, 1),
    }
    half = pairs // 2
    level = (1 - confidence) / 2
    name, test = _best_test({key: score[:half] for key, score in scores.items()}, present[:half], plan.delta, level)
    return AuditResult(
        claimed_epsilon=claimed,
        lower_bound=max(0.0, test.bound(scores[name][half:], present[half:], plan.delta, level)),
        delta=plan.delta,
        confidence=confidence,
        canaries=pairs,
        steps=plan.steps,
        statistic=f"{name}, small data sets in which all other records pull the other way",
        method="pairs",
    )


@dataclass(frozen=True)
class _Test:
    """Answers "present" for scores from ``threshold`` up; with ``of_absence``, "absent" for scores below it."""

    threshold: float
    of_absence: bool

    def bound(self, scores: Values, present: Bits, delta: float, level: float) -> float:
        """Lower limit on epsilon from the test's hits and false alarms; fails with chance 2 ``level``."""
        speaks = (scores < self.threshold) if self.of_absence else (scores >= self.threshold)
        right = present != self.of_absence
        hits, alarms = (np.array([some.sum()], np.float64) for some in (speaks[right], speaks[~right]))
        return float(_limit(hits, alarms, int(right.sum()), int((~right).sum()), delta, level)[0])


def _limit(hits: Values, alarms: Values, right: int, wrong: int, delta: float, level: float) -> Values:
    """log((a' - delta) / b') for ``hits`` of ``right`` and ``alarms`` of ``wrong``; -inf where a' is below delta."""
    least = np.where(hits > 0, betaincinv(np.maximum(hits, 0.5), right - hits + 1, level), 0.0)
    most = np.where(alarms < wrong, betaincinv(alarms + 1, np.maximum(wrong - alarms, 0.5), 1 - level), 1.0)
    gain = least - delta
    result: Values = np.where(gain > 0, np.log(np.maximum(gain, 1e-300) / most), -np.inf)
    return result


def _best_test(scores: dict[str, Values], present: Bits, delta: float, level: float) -> tuple[str, _Test]:
    best = (-math.inf, next(iter(scores)), _Test(0.0, False))
    for name, score in scores.items():
        thresholds = np.unique(np.quantile(score, np.linspace(0, 1, _THRESHOLDS)))
        inside, outside = np.sort(score[present]), np.sort(score[~present])
        below = [np.searchsorted(some, thresholds).astype(np.float64) for some in (inside, outside)]
        sizes = (len(inside), len(outside))
        says_present = _limit(sizes[0] - below[0], sizes[1] - below[1], *sizes, delta, level)
        says_absent = _limit(below[1], below[0], sizes[1], sizes[0], delta, level)
        for bounds, of_absence in ((says_present, False), (says_absent, True)):
            top = int(bounds.argmax())
            best = max(best, (float(bounds[top]), name, _Test(float(thresholds[top]), of_absence)), key=lambda b: b[0])
    return best[1], best[2]


def _run(plan: PrivacyPlan, mechanism: Mechanism, present: Bits, helpers: int) -> tuple[Floats, float]:
    """(T, P) values over the claimed noise deviation, and the epsilon that the ledger claims."""
    module = WithCanaries(None, None, len(present), plan.max_grad_norm)
    clipper = mechanism.clipper(module, dict(module.named_parameters()), plan)
    noise, ledger = mechanism.noise(plan), mechanism.ledger()
    draws = [
        iter(mechanism.sampler(_own_seed(plan, place), helpers + int(member))) for place, member in enumerate(present)
    ]
    values = np.zeros((plan.steps, len(present)), np.float32)
    for step in range(plan.steps):
        places, charges = _batch([next(draw) for draw in draws], helpers)
        if len(places):
            rows = rows_of_canaries(torch.tensor(places), torch.tensor(charges), plan.noise_multiplicity)
            clipper.accumulate(module.canary_losses, rows, plan.noise_multiplicity)
        sums = clipper.pop_sums()
        noise.add_(sums)
        ledger.record(plan.event())
        values[step] = sums["canaries.weight"].squeeze(1).numpy() / plan.noise_std
    return values, ledger.epsilon(plan.delta)


def _batch(draws: list[list[int]], helpers: int) -> tuple[list[int], list[float]]:
    """The data set of each drawn record, and its sign; the canary is the last record of its set."""
    drawn = [(place, index) for place, draw in enumerate(draws) for index in draw]
    return [place for place, _ in drawn], [1.0 if index == helpers else -1.0 for _, index in drawn]


def _own_seed(plan: PrivacyPlan, place: int) -> PrivacyPlan:
    """The plan for one data set: with a known seed each needs its own, or all would make the same draws."""
    if plan.insecure_seed is None:
        return plan
    return replace(plan, insecure_seed=(plan.insecure_seed + 1) * 1_000_003 + place)
