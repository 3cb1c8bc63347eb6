"""`AuditResult`: the measured and the claimed epsilon of an audit."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ldm.numbers import rounded_down, rounded_up


@dataclass(frozen=True)
class AuditResult:
    """A lower bound on epsilon from an experiment, and the epsilon that the ledger of the same steps claims.

    ``claimed_epsilon`` and ``lower_bound`` are epsilons at ``delta`` (>= 0, infinite when there is no bound). A correct
    mechanism has ``lower_bound <= claimed_epsilon`` with probability ``confidence`` at least. ``canaries`` is the
    number of records put in or left out by chance (for ``pairs``: of small data sets), ``steps`` the number of noised
    sums released. ``statistic`` describes the measurement in words, ``method`` names the bound. A low bound proves
    nothing, since the audit may have been too small.
    """

    claimed_epsilon: float
    lower_bound: float
    delta: float
    confidence: float
    canaries: int
    steps: int
    statistic: str
    method: str

    @property
    def exceeded(self) -> bool:
        """Whether the measured leak is larger than the claim, which means that the mechanism is wrong."""
        return self.lower_bound > self.claimed_epsilon

    @property
    def share(self) -> float:
        """The bound over the claim: near 1 for a tight audit, above 1 for a broken mechanism."""
        if self.claimed_epsilon > 0:
            return self.lower_bound / self.claimed_epsilon
        return float("inf") if self.exceeded else 0.0

    def verdict(self) -> str:
        """One line for people."""
        sure = f"{self.confidence:.0%} confidence, {self.canaries:,} canaries, {self.steps:,} steps, {self.method}"
        delta = rounded_up(self.delta, 6)
        if self.exceeded:
            return (
                f"EXCEEDED: epsilon is at least {rounded_down(self.lower_bound)} at delta {delta}, but "
                f"{rounded_up(self.claimed_epsilon)} is claimed ({sure}): do not publish; the mechanism does not do "
                "what its plan says"
            )
        return (
            f"consistent: epsilon is at least {rounded_down(self.lower_bound)} at delta {delta}, claimed is "
            f"{rounded_up(self.claimed_epsilon)} ({sure})"
        )

    def to_dict(self) -> dict[str, Any]:
        """The fields and the verdict as plain JSON values, for a release card."""
        return {**asdict(self), "exceeded": self.exceeded, "verdict": self.verdict()}
