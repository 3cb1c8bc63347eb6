"""The one-run bound of Steinke, Nasr and Jagielski (2023, arXiv 2305.08846), valid for any mechanism.

``m`` canaries are in or out by independent fair coins; from the result of one run the auditor guesses some of the coins
and abstains on the others. Under pure epsilon-differential privacy, for every result and all earlier coins, a coin is
guessed right with a chance of at most p = e^epsilon / (1 + e^epsilon). So the number of right guesses among r is
dominated by Binomial(r, p). Delta adds, by theorem 5.2 there, at most 2 m delta max_i P[v - i <= Binomial(r, p) < v] /
i to the chance of v right guesses or more. An epsilon is refuted if the observed number of right guesses has a chance
below 1 - confidence under it.

The bound holds for every mechanism, sampler and noise. It is far below the claim where a large part of epsilon stands
for events of chance delta, as with Gaussian noise; ``f_dp`` and ``gaussian`` are tighter there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.stats import binom

from ldm.privacy.audit.canaries import Bits
from ldm.privacy.audit.scores import Values

# Shares of the canaries that are guessed, fixed in advance; each is tested at a part of the level.
SHARES = (0.002, 0.01, 0.05, 0.2, 1.0)

_LARGEST = 50.0


def right_guesses(scores: Values, present: Bits, guesses: int) -> int:
    """How many of ``guesses`` are right when half go to the highest scores as present, half to the lowest as absent."""
    order = np.argsort(scores, kind="stable")
    half = guesses // 2
    return int((~present[order[:half]]).sum() + present[order[len(order) - (guesses - half) :]].sum())


def chance(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Upper bound on the chance of at least ``right`` of ``guesses`` right guesses under (epsilon, delta)-DP."""
    success = 1 / (1 + math.exp(-epsilon))
    pure = float(binom.sf(right - 1, guesses, success))
    if delta == 0 or right == 0:
        return min(1.0, pure)
    below = np.cumsum(binom.pmf(np.arange(right - 1, -1, -1), guesses, success))
    worst = float((below / np.arange(1, right + 1)).max())
    return min(1.0, pure + 2 * canaries * delta * worst)


def one_run_bound(scores: Values, present: Bits, delta: float, confidence: float) -> float:
    """Largest epsilon that is refuted at ``confidence``; each of the shares is tested at an equal part of the level."""
    level = (1 - confidence) / len(SHARES)
    count = len(present)
    best = 0.0
    for guesses in sorted({max(2, round(share * count)) for share in SHARES}):
        right = right_guesses(scores, present, guesses)
        best = max(best, _largest_refuted(count, guesses, right, delta, level))
    return best


def _largest_refuted(canaries: int, guesses: int, right: int, delta: float, level: float) -> float:
    def refuted(epsilon: float) -> bool:
        return chance(canaries, guesses, right, epsilon, delta) <= level

    low: Any = 0.0
    high = _LARGEST
    if not refuted(low):
        return 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return float(low)
