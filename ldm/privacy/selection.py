"""`Selection`: the price of publishing the best of a random number of private runs (Papernot and Steinke 2022).

Training k runs and publishing the best costs what k runs cost. With a random number K of runs, which stays secret, it
costs little more than one (Liu and Talwar 2019, arXiv 1811.07971). Here K follows the truncated negative binomial
distribution with parameters eta > -1 and gamma in (0, 1) (arXiv 2110.03620, definition 1):

    P[K = k] = (1 - gamma)^k / (gamma^-eta - 1) * prod over l < k of (l + eta) / (l + 1),    k = 1, 2, ...

and for eta = 0 the limit (1 - gamma)^k / (k log(1/gamma)). eta = 1 is the geometric distribution.

**Theorem 2 there.** Let one run, its choice of settings included, satisfy (a, e)-RDP and (b, f)-RDP with a > 1 and
b >= 1. The best of K independent runs, by any score that is computed from a run's own private output, satisfies
(a, e')-RDP with

    e' = e + (1 + eta) (1 - 1/b) f + (1 + eta) log(1/gamma) / b + log(E[K]) / (a - 1).

The second and third term are minimised over b. Only the winner may be published: neither K nor the other runs.

>>> selection = Selection.with_mean(10, eta=1)
>>> round(selection.mean, 6), round(sum(k * selection.chance(k) for k in range(1, 2000)), 6)
(10.0, 10.0)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ldm.errors import UserError
from ldm.privacy.validate import number

Floats = np.ndarray[Any, np.dtype[np.float64]]

#: The largest eta, far above those in use (0 and 1); the mean of larger ones cannot be computed.
LARGEST_ETA = 100.0


@dataclass(frozen=True)
class Selection:
    """The distribution of the number of runs of which one is published. Public constants; raises UserError."""

    eta: float
    gamma: float

    def __post_init__(self) -> None:
        number("selection eta", self.eta, above=-1, at_most=LARGEST_ETA)
        number("selection gamma", self.gamma, above=0)
        if self.gamma >= 1:
            raise UserError(f"selection gamma is {self.gamma!r}, it must be below 1; smaller means more runs")

    @classmethod
    def with_mean(cls, runs: float, eta: float = 1.0) -> Selection:
        """The distribution with a mean of ``runs`` > 1 runs."""
        number("expected runs", runs, above=1)
        number("selection eta", eta, above=-1, at_most=LARGEST_ETA)
        from scipy.optimize import brentq  # late: as in ldm.privacy.accounting

        low, high = 1e-12, 1 - 1e-12

        def excess(gamma: float) -> float:
            return math.log(cls(eta, gamma).mean / runs)

        if excess(low) < 0:
            raise UserError(f"{runs:g} runs cannot be expected with eta {eta:g}; take eta 0 or 1")
        return cls(eta, float(brentq(excess, low, high, xtol=1e-15, rtol=1e-14)))

    @property
    def mean(self) -> float:
        """E[K] >= 1."""
        if self.eta == 0:
            return (1 / self.gamma - 1) / math.log(1 / self.gamma)
        # gamma^eta - 1 and the sign of eta go together; expm1 keeps small eta exact
        return self.eta * (1 - self.gamma) / (self.gamma * -math.expm1(self.eta * math.log(self.gamma)))

    def chance(self, runs: int) -> float:
        """P[K = ``runs``] for runs >= 1."""
        tail = runs * math.log1p(-self.gamma)
        if self.eta == 0:
            return math.exp(tail) / (runs * math.log(1 / self.gamma))
        # the product is Gamma(k + eta) / (Gamma(eta) k!), whose first factor (eta) has the sign of the denominator
        rest = sum(math.log((step + self.eta) / (step + 1)) for step in range(1, runs))
        return math.exp(tail + rest) * self.eta / math.expm1(-self.eta * math.log(self.gamma))

    def draw(self, generator: np.random.Generator) -> int:
        """One number of runs; ``generator`` must be secret, because K is."""
        left, runs = float(generator.random()), 0
        while left >= 0 and runs < 10_000_000:
            runs += 1
            left -= self.chance(runs)
        return runs

    def renyi(self, orders: Floats, divergences: Floats) -> Floats:
        """Renyi divergences of the published best run from those of one run, both at ``orders`` > 1.

        ``divergences`` bound both directions of the neighbouring relation.
        """
        usable = np.isfinite(divergences) & (orders >= 1)
        if not usable.any():
            return np.full_like(divergences, math.inf)
        other, spent = orders[usable], divergences[usable]
        extra = (1 + self.eta) * float(((1 - 1 / other) * spent + math.log(1 / self.gamma) / other).min())
        result: Floats = divergences + extra + math.log(self.mean) / (orders - 1)
        return result

    def describe(self) -> str:
        """The selection in words, for a card."""
        return (
            f"the best of a secret, random number of runs was published ({self.mean:.3g} on average; truncated "
            f"negative binomial, eta {self.eta:g}, gamma {self.gamma:.4g}; arXiv 2110.03620)"
        )

    def to_dict(self) -> dict[str, Any]:
        """The constants as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Selection:
        """Read :meth:`to_dict` back; raises UserError unless it is exactly that."""
        if not isinstance(values, Mapping) or set(values) != {"eta", "gamma"}:
            raise UserError(f"selection: expected the keys eta and gamma, found {values!r}")
        return cls(**values)
