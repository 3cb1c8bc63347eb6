"""The one-run bound for a whole trade-off curve, after Mahloujifar, Melis and Chaudhuri (2024, arXiv 2410.22235).

**Claim that is tested.** Every coin of a canary moves the law of the result within the curve of the plan: with
g(x) = min over all epsilon of e^epsilon x + delta(epsilon), any event E has P[E | coin] <= g(P[E | other coin]), where
delta(epsilon) is the larger of both directions. g is concave and increasing.

**Theorem.** Of m canaries the auditor guesses c' coins; let W be how many guesses are right, p_w = P[W = w],
R_j = sum over w >= j of w p_w / m and L_j = sum over w >= j of (c' - w) p_w / m. Then R_{j+1} <= g(L_j) for every j.

*Proof.* For canary i let A_i, B_i be the events that its guess is made and right, made and wrong, and W_i the number of
right guesses among the others. Given the other coins, "guess 1 and W_i >= j" is an event of the result, so its chances
with coin 1 and coin 0 are within g; averaging over the other coins and the two sides keeps that, as g is concave:
P[A_i, W_i >= j] <= g(P[B_i, W_i >= j]). Right guesses have W = W_i + 1 and wrong ones W = W_i, so summing over i,
with the mean taken inside g, turns the left side into R_{j+1} and the right side into g(L_j).

**Test.** Suppose P[W >= c] = t. Build the distribution with the least mass: all of t at w = c, then downwards L_j =
max(L_{j+1}, h(R_{j+1})) with h the inverse of g. Every distribution that fits has, for all j <= k, at least as large a
sum over w >= k of (w - j) p_w as this one; the induction step holds because taking the least allowed p_k turns the
difference into (c' - j) / (c' - k) times the sum for j = k, which is at least as large by assumption. Letting j go to
minus infinity, it also has at least as much mass. So if the least mass exceeds 1, then P[W >= c] < t. With t = 1 -
confidence and c the observed number of right guesses, the curve is refuted.

Even so the bound stays at about half of the claim. A mechanism that leaks much in a share t of all runs, and nothing in
the others, stays within such a curve, and one run cannot rule out that it was one of these.

**Bound.** Plans that differ from the claimed one in the noise only have ordered curves. The bound is the epsilon, at
the plan's delta, of the smallest noise multiplier whose curve is refuted; the mechanism protects records less than that
plan would. It exceeds the claim exactly when the plan's own curve is refuted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ldm.privacy.accounting import deltas, epsilon
from ldm.privacy.audit.canaries import Bits
from ldm.privacy.audit.one_run import right_guesses
from ldm.privacy.audit.scores import Values
from ldm.privacy.plan import PrivacyPlan

# Shares of the canaries that are guessed, fixed in advance; each is tested at a part of the level.
SHARES = (0.01, 0.1)

_LINES = 200
_SMALLEST_DELTA = 1e-9
_LARGEST = 300.0
_FACTOR = 64.0  # noise multipliers are searched from the plan's over this to the plan's times this
_PRECISION = 1e-2


@dataclass(frozen=True)
class Curve:
    """The lines e^epsilon x + delta whose minimum is the trade-off bound g; fewer lines make a weaker claim."""

    slopes: Values
    offsets: Values

    @classmethod
    def of(cls, plan: PrivacyPlan) -> Curve:
        """The curve of all steps of ``plan``."""
        history = [(plan.event(), plan.steps)]
        top = min(epsilon(history, _SMALLEST_DELTA), _LARGEST)
        grid = np.linspace(0, top, _LINES)
        forward = np.maximum(deltas(history, grid.tolist()), 0.0)
        # the same pair of laws with the roles swapped: delta(-e) = 1 - e^-e (1 - delta(e))
        backward = 1 - np.exp(-grid) * (1 - forward)
        return cls(np.exp(np.concatenate([grid, -grid])), np.concatenate([forward, backward]))

    def inverse(self, value: float) -> float:
        """h: the least x in [0, 1] with g(x) >= ``value``, for the lines of this curve."""
        return max(0.0, float(((value - self.offsets) / self.slopes).max()))


def refuted(curve: Curve, canaries: int, guesses: int, right: int, level: float) -> bool:
    """Whether at least ``right`` of ``guesses`` right guesses have a chance below ``level`` under ``curve``."""
    wins = right * level / canaries
    losses = (guesses - right) * level / canaries
    for place in range(right - 1, -1, -1):
        least = curve.inverse(wins)
        if least <= losses:
            return False  # no mass has to be added here, and so none further down
        wins += place * (least - losses) / (guesses - place)
        losses = least
        if (wins + losses) * canaries > guesses:
            return True
    return False


def f_dp_bound(scores: Values, present: Bits, plan: PrivacyPlan, confidence: float) -> float:
    """Largest epsilon, at the plan's delta, of a plan of this shape whose curve is refuted; 0 when none is."""
    level = (1 - confidence) / len(SHARES)
    count = len(present)
    seen = [(guesses, right_guesses(scores, present, guesses)) for guesses in _guess_counts(count)]

    def fails(factor: float) -> bool:
        curve = Curve.of(replace(plan, noise_multiplier=plan.noise_multiplier * factor, target_epsilon=None))
        return any(refuted(curve, count, guesses, right, level) for guesses, right in seen)

    factor = _smallest_factor(fails)
    if factor is None:
        return 0.0
    return replace(plan, noise_multiplier=plan.noise_multiplier * factor, target_epsilon=None).epsilon()


def _guess_counts(count: int) -> list[int]:
    return sorted({max(2, round(share * count)) for share in SHARES})


def _smallest_factor(fails: Callable[[float], bool]) -> float | None:
    """The smallest factor in [1 / _FACTOR, _FACTOR] that fails, up to _PRECISION, from above; None when none does."""
    low, high, step = 1.0, 1.0, 1.1
    if fails(1.0):
        while fails(low := high / step):
            high, step = low, step**2
            if low < 1 / _FACTOR:
                return high
    else:
        while not fails(high := low * step):
            low, step = high, step**2
            if high > _FACTOR:
                return None
    while high / low > 1 + _PRECISION:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fails(middle) else (middle, high)
    return high
