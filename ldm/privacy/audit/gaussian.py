"""A white-box bound from each step: confidence limits on the actual noise multiplier and sampling rate.

The one-run bounds turn a canary's whole signal into one guess, which throws most of it away; "Let's Ask Gauss" (arXiv
2606.12733) keeps the signals as Gaussian variables instead. This module does so step by step, without a limit theorem.
The auditor runs the sampler, so it knows the steps in which a canary was drawn, and a single step with a drawn canary
is a Gaussian mechanism whose two outcomes can be compared directly. m canaries and T steps make m T observations.

**Model.** In the units of the claimed noise the value of a canary in a step is tau N(0, 1) + theta n with independent
normal numbers, n how often it was drawn, tau = 1 and theta = a (C over the claimed noise deviation) when all is right.
Privacy depends on tau and theta only through s = a' tau / theta, the actual noise multiplier, with a' = a sigma.

**Bound on theta / tau.** Take a table with independent rows (or columns) that have nothing in common but an unknown
offset, and let x be the difference between the mean of the values with n = 1 and with n = 0 within a row, averaged
over the rows with weights w_r = n1 n0 / (n1 + n0). Given the draws it is normal with mean theta and variance tau^2 /
sum w_r. With S^2 the sum of squared deviations from the row's two means, S^2 / tau^2 is chi-square with nu = sum (n1
+ n0 - 2) degrees of freedom, independent of x. Let k be the beta-quantile of that law and z the (1 - beta)-quantile
of N(0, 1). Then tau <= S / sqrt(k) and theta >= x - z tau / sqrt(sum w_r) each fail with chance beta, so with chance
1 - 2 beta at least theta / tau >= (x sqrt(k) / S) - z / sqrt(sum w_r) =: t whenever the right side is positive, and s
<= a' / t.

*Proof.* theta / tau >= x / tau - z / sqrt(sum w_r) by the second event, and x / tau >= x sqrt(k) / S by the first one
when x >= 0. (A canary drawn twice in a step counts as n = 1; its larger shift only raises x.)

The bound is computed twice. With canaries as rows, it finds noise that is drawn once and reused, which has no deviation
over the steps (s = 0). With steps as rows, it finds one number added to all coordinates.

**Bound on the rate.** The number of draws of the k canaries that are in the data set is Binomial(k T, q); the
Clopper-Pearson limit gives q >= q' up to a chance beta.

**Bound on epsilon.** With all limits at once, by the union bound, a mechanism of the form Poisson sampling and Gaussian
noise has a rate of at least q' and a noise multiplier of at most s, and epsilon is monotone in both. A canary with a
coordinate of its own is the pair of data sets for which the accountant's curve of such a mechanism is exact, so
epsilon(q', s, T, delta) is a lower bound up to the accountant's grid (about 0.1 %).

Unlike the one-run bounds, this one assumes the form of the mechanism. For draws that are not independent (shuffling),
use ``pairs``.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from scipy.stats import beta, chi2, norm

from ldm.privacy.accounting import epsilon
from ldm.privacy.audit.canaries import Signals
from ldm.privacy.audit.scores import Values, unit_shift
from ldm.privacy.event import REPLACE_ONE


def gaussian_bound(signals: Signals, confidence: float) -> float:
    """Lower bound on epsilon at the plan's delta, at ``confidence``; see the module's docstring for the assumptions."""
    plan = signals.plan
    level = (1 - confidence) / 5  # one part for the rate, two for each of the two tables
    in_set = np.ones(len(signals.present), bool) if plan.relation == REPLACE_ONE else signals.present
    rate = rate_limit(int((signals.drawn[:, in_set] > 0).sum()), in_set.sum() * plan.steps, level)
    directions = np.where(
        signals.present, 1.0, -1.0
    )  # an absent canary is drawn under replace_one only, with the opposite sign
    values = (signals.values * directions).astype(np.float64)
    drawn = signals.drawn > 0
    ratio = max(shift_limit(values.T, drawn.T, level), shift_limit(values, drawn, level))
    if rate == 0 or ratio <= 0:
        return 0.0
    if math.isinf(ratio):
        return math.inf
    multiplier = plan.noise_multiplier * unit_shift(plan) / ratio
    event = replace(plan.event(), sample_rate=rate, noise_multiplier=multiplier)
    return epsilon([(event, plan.steps)], plan.delta)


def rate_limit(drawn: int, chances: int, level: float) -> float:
    """Lower confidence limit on a rate from ``drawn`` of ``chances`` independent draws (Clopper and Pearson 1934)."""
    if drawn == 0:
        return 0.0
    return float(beta.ppf(level, drawn, chances - drawn + 1))


def shift_limit(values: Values, drawn: np.ndarray[tuple[int, int], np.dtype[np.bool_]], level: float) -> float:
    """Lower confidence limit on theta / tau from a table (rows, observations); fails with chance 2 ``level`` at most.

    Rows without a draw, or with a draw in every observation, count for the deviation only. Infinite when the
    values do not deviate at all.
    """
    ones = drawn.sum(1).astype(np.float64)
    zeros = drawn.shape[1] - ones
    high = (values * drawn).sum(1) / np.maximum(ones, 1)
    low = (values * ~drawn).sum(1) / np.maximum(zeros, 1)
    both = (ones > 0) & (zeros > 0)
    deviations = values - np.where(drawn, high[:, None], low[:, None])
    freedom = float(drawn.size - (ones > 0).sum() - (zeros > 0).sum())
    weights = np.where(both, ones * zeros / drawn.shape[1], 0.0)
    total = float(weights.sum())
    if total == 0 or freedom < 1:
        return 0.0
    difference = float((weights * (high - low)).sum() / total)
    spread = math.sqrt(float((deviations**2).sum()))
    if difference <= 0:
        return 0.0
    if spread <= 1e-6 * math.sqrt(freedom) * difference:
        return math.inf
    return difference * math.sqrt(float(chi2.ppf(level, freedom))) / spread - float(norm.ppf(1 - level)) / math.sqrt(
        total
    )
