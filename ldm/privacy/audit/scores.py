"""Evidence for the presence of a canary: log likelihood ratios, one number a canary."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.special import logsumexp
from scipy.stats import binom

from ldm.privacy.audit.canaries import Signals
from ldm.privacy.event import REPLACE_ONE
from ldm.privacy.plan import PrivacyPlan

Values = np.ndarray[Any, np.dtype[np.floating[Any]]]


def unit_shift(plan: PrivacyPlan) -> float:
    """How far a canary moves its coordinate when it is drawn, over the claimed noise standard deviation."""
    return plan.max_grad_norm / plan.noise_std


def membership_scores(signals: Signals) -> Values:
    """(m,) log likelihood ratios of present against absent, under the plan; larger values are evidence for present.

    A step's value is N(0, 1), or N(a, 1) with the chance of the sampling rate q when the canary is present, so that the
    ratio of a step is 1 - q + q exp(a z - a^2 / 2). Under ``replace_one`` an absent canary moves the coordinate by -a
    instead. For a mechanism that breaks its plan the ratio is less informative, but every bound stays valid.
    """
    plan = signals.plan
    shift = unit_shift(plan)
    total = np.zeros(signals.values.shape[1])
    for values in signals.values:
        total += _step_ratio(values.astype(np.float64), plan.sample_rate, shift)
        if plan.relation == REPLACE_ONE:
            total -= _step_ratio(-values.astype(np.float64), plan.sample_rate, shift)
    return total


def _step_ratio(values: Values, rate: float, shift: float) -> Values:
    drawn = math.log(rate) + shift * values - shift**2 / 2
    return np.logaddexp(math.log1p(-rate), drawn) if rate < 1 else drawn


def poisson_ratio(values: Values, plan: PrivacyPlan, helpers: int) -> Values:
    """(P,) log likelihood ratios of (T, P) values if draws are Poisson and ``helpers`` records add -a each."""
    shift, rate = unit_shift(plan), plan.sample_rate
    most = int(binom.ppf(1 - 1e-9, helpers, rate))
    chances = binom.logpmf(np.arange(most + 1), helpers, rate)

    def density(some: Values) -> Values:
        means = -shift * np.arange(most + 1)
        result: Values = logsumexp(chances[:, None] - (some[None] - means[:, None]) ** 2 / 2, axis=0)
        return result

    total = np.zeros(values.shape[1])
    for row in values.astype(np.float64):
        absent = density(row)
        if rate == 1:
            total += density(row - shift) - absent
        else:
            present = np.logaddexp(math.log1p(-rate) + absent, math.log(rate) + density(row - shift))
            total += present - absent
    return total


def fixed_size_ratio(values: Values, plan: PrivacyPlan, batch_size: int) -> Values:
    """(P,) log likelihood ratios of (T, P) values if batches were cut from shuffled epochs, ``batch_size`` each.

    Every batch of an epoch then holds ``batch_size`` records that add -a each. A present canary replaces one of these
    by +a in one batch; without it the last batch is one record short.
    """
    shift = unit_shift(plan)
    epoch = max(1, round(1 / plan.sample_rate))
    total = np.zeros(values.shape[1])
    for start in range(0, len(values) - epoch + 1, epoch):
        rest = values[start : start + epoch].astype(np.float64) + batch_size * shift
        present = logsumexp(2 * shift * rest - 2 * shift**2, axis=0) - math.log(epoch)
        total += present - (shift * rest[-1] - shift**2 / 2)
    return total
