"""`audit_draws`: whether the draws of an audited run are independent, from the sampler's own index lists.

A canary with a coordinate of its own measures noise and clipping, but not independence: a shuffled epoch moves it as
often as Poisson draws do. The auditor sees the draws, so it tests them directly. Under a Poisson plan of T steps the
number of times that a canary is drawn is Binomial(T, q), and the number of canaries in a step is Binomial(k, q), all
independent in one direction. Let Z be such a number, centred and over its deviation; then Z^2 has mean 1 and variance
2 + (1 - 6 q (1 - q)) / (n q (1 - q)) with n = T or k. The sum of Z^2 over canaries (or over steps) is far below its
mean when every record comes once an epoch (or every batch has one size), far above it when draws are copied.

The p-value of both sums is that of a gamma law with the exact mean and variance, two-sided, with the union bound.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import gamma

from ldm.privacy.audit.canaries import Signals
from ldm.privacy.event import POISSON, REPLACE_ONE

#: A correct sampler is called wrong with about this chance; the approximation by a gamma law is good enough there.
LEVEL = 1e-6


@dataclass(frozen=True)
class DrawsResult:
    """The test of a run's draws.

    ``by_record`` and ``by_step``: the spread of the number of draws of a canary, and of canaries in a step, over that
    of independent draws (1 when all is right, 0 for shuffled epochs). ``repeated``: the most often that one step drew
    one canary (1). ``chance``: of a spread as extreme as these under the plan.
    """

    by_record: float
    by_step: float
    repeated: int
    chance: float

    @property
    def exceeded(self) -> bool:
        """Whether the draws are not those of the plan, so that its epsilon does not apply to them."""
        return self.chance < LEVEL or self.repeated > 1

    def verdict(self) -> str:
        """One line for people."""
        if self.repeated > 1:
            return f"EXCEEDED: a record was drawn {self.repeated} times in one step, and moves the sum as often"
        measured = f"spread over records {self.by_record:.3f}, over steps {self.by_step:.3f}, 1 is expected"
        if self.exceeded:
            return (
                f"EXCEEDED: the draws are not independent at the plan's rate ({measured}, chance below {LEVEL:g}): "
                "the claimed epsilon is that of Poisson draws, and does not hold for shuffled or repeated ones"
            )
        return f"consistent: draws are independent at the plan's rate ({measured})"

    def to_dict(self) -> dict[str, Any]:
        """The fields and the verdict as plain JSON values."""
        return {**asdict(self), "exceeded": self.exceeded, "verdict": self.verdict()}


def audit_draws(signals: Signals) -> DrawsResult | None:
    """Test the draws of `observe`; None for a plan with other than Poisson draws, or with rate 1."""
    plan = signals.plan
    if plan.sampling != POISSON or plan.sample_rate == 1:
        return None
    members = np.ones(len(signals.present), bool) if plan.relation == REPLACE_ONE else signals.present
    drawn = signals.drawn[:, members]
    by_record, one = _spread(drawn.sum(0), drawn.shape[0], plan.sample_rate)
    by_step, other = _spread(drawn.sum(1), drawn.shape[1], plan.sample_rate)
    return DrawsResult(by_record, by_step, int(drawn.max(initial=0)), min(1.0, 2 * min(one, other)))


def _spread(counts: np.ndarray[Any, Any], trials: int, rate: float) -> tuple[float, float]:
    """The mean of Z^2 over Binomial(trials, rate) ``counts``, and the chance of a mean as far from 1."""
    variance = trials * rate * (1 - rate)
    if variance == 0 or len(counts) == 0:
        return 1.0, 1.0
    mean = float((((counts - trials * rate) ** 2) / variance).mean())
    each = 2 + (1 - 6 * rate * (1 - rate)) / variance  # the variance of one Z^2
    shape = len(counts) / each  # a gamma law with mean 1 and variance each / len(counts)
    low = float(gamma.cdf(mean, shape, scale=1 / shape))
    high = float(gamma.sf(mean, shape, scale=1 / shape))
    return mean, 2 * min(low, high) if math.isfinite(mean) else 0.0
