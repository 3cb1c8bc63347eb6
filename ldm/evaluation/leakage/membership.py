"""Loss-based membership inference, compared with the bound that (epsilon, delta) sets.

The input is arrays of per-image losses; no model is needed. A threshold on the loss is the attack of Yeom et al. 2018;
a per-image reference loss subtracted first is the calibration of Watson et al. 2022. The results are computed from
private images, and no (epsilon, delta) covers them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ldm.errors import UserError
from ldm.files import write_atomic
from ldm.numbers import rounded_up

NOT_COVERED = "computed from private images; not covered by any (epsilon, delta)"
LOW_RATES = (0.001, 0.01, 0.1)
CURVE_POINTS = 512


@dataclass(frozen=True)
class Roc:
    """Shares of members (tpr) and of held-out images (fpr) at or below each threshold, from (0, 0) up to (1, 1)."""

    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]
    thresholds: NDArray[np.float64]

    @property
    def auc(self) -> float:
        """Area under the curve: the probability that a member's loss is below a held-out one, ties counting half."""
        return float((np.diff(self.fpr) * (self.tpr[1:] + self.tpr[:-1])).sum() / 2)

    @property
    def advantage(self) -> float:
        """Greatest tpr - fpr over thresholds, in [0, 1]."""
        return float((self.tpr - self.fpr).max())

    def tpr_at(self, rate: float) -> float:
        """Greatest tpr whose fpr is at most ``rate``."""
        return float(self.tpr[self.fpr <= rate].max())


def roc_curve(members: ArrayLike, held_out: ArrayLike) -> Roc:
    """The curve of "loss at or below t means member" over all t; equal losses are one point. Losses (N,) and (M,)."""
    inside, outside = _losses(members, "members"), _losses(held_out, "held-out images")
    thresholds = np.unique(np.concatenate([inside, outside]))
    tpr = np.searchsorted(np.sort(inside), thresholds, side="right") / len(inside)
    fpr = np.searchsorted(np.sort(outside), thresholds, side="right") / len(outside)
    start = np.zeros(1)
    return Roc(np.append(start, fpr), np.append(start, tpr), np.append(-np.inf, thresholds))


def advantage_bound(epsilon: float, delta: float) -> float:
    """The greatest tpr - fpr that (epsilon, delta) allows any test: (e^eps - 1 + 2 delta) / (e^eps + 1), at most 1.

    Source: the two lines tpr <= e^eps fpr + delta and 1 - fpr <= e^eps (1 - tpr) + delta (Kairouz et al. 2015), which
    meet where fpr = 1 - tpr.
    """
    if not epsilon >= 0 or not 0 <= delta <= 1:
        raise UserError(f"epsilon {epsilon} must be at least 0 and delta {delta} in [0, 1]")
    return min(1.0, math.tanh(epsilon / 2) + 2 * delta / (math.exp(min(epsilon, 700.0)) + 1))


def epsilon_of_advantage(advantage: float, delta: float) -> float:
    """The least epsilon at ``delta`` that allows an advantage: the bound above solved for epsilon, at least 0."""
    if advantage >= 1:
        return math.inf
    return max(0.0, math.log(max(1 + advantage - 2 * delta, 1e-300) / (1 - advantage)))


def tpr_bound(fpr: ArrayLike, epsilon: float, delta: float) -> NDArray[np.float64]:
    """The greatest tpr that (epsilon, delta) allows at each fpr (Kairouz et al. 2015)."""
    rate = np.asarray(fpr, np.float64)
    growth = math.exp(min(epsilon, 700.0))
    return np.minimum(np.minimum(growth * rate + delta, 1 - (1 - delta - rate) / growth), 1.0)


@dataclass(frozen=True)
class MembershipResult:
    """Success of a loss threshold at separating members from held-out images.

    advantage: greatest tpr - fpr, and auc, each with an interval of ``confidence``; tpr_at: tpr at low fpr.
    allowed: the advantage that (epsilon, delta) permits on average over runs, None when they were not given.
    exceeds: the whole interval lies above it; with hundreds of images that is strong evidence of a fault, since the
    advantage of one run then hardly differs from its average (Steinke et al. 2023 make such tests exact).
    least_epsilon: the epsilon at delta that the lower end of the interval implies. curve: points (fpr, tpr), thinned.
    attack: name of the attack.
    """

    attack: str
    members: int
    held_out: int
    auc: float
    auc_interval: tuple[float, float]
    advantage: float
    advantage_interval: tuple[float, float]
    confidence: float
    tpr_at: dict[str, float]
    epsilon: float | None
    delta: float | None
    allowed: float | None
    exceeds: bool
    least_epsilon: float
    curve: tuple[tuple[float, float], ...]
    warning: str = NOT_COVERED

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an epsilon without bound is the word "infinite"."""
        content = dict(vars(self), tpr_at=dict(self.tpr_at), curve=[list(point) for point in self.curve])
        for name in ("epsilon", "least_epsilon"):
            if content[name] is not None and math.isinf(content[name]):
                content[name] = "infinite"
        return content

    def __str__(self) -> str:
        low, high = self.advantage_interval
        text = (
            f"{self.attack}: AUC {self.auc:.3f}, advantage {self.advantage:.3f} "
            f"({100 * self.confidence:g} % interval {low:.3f} to {high:.3f})"
        )
        if self.epsilon is None or self.delta is None or self.allowed is None:
            return text
        verdict = (
            "MORE than the guarantee allows: look for a fault in the training or its accounting"
            if self.exceeds
            else "within the guarantee"
        )
        budget = f"epsilon {rounded_up(self.epsilon)}, delta {rounded_up(self.delta, 6)}"
        return f"{text}; {budget} allow {rounded_up(self.allowed, 3)}: {verdict}"


def membership_inference(
    members: ArrayLike,
    held_out: ArrayLike,
    *,
    epsilon: float | None = None,
    delta: float | None = None,
    confidence: float = 0.95,
    attack: str = "loss threshold",
) -> MembershipResult:
    """Attack with losses of members (N,) and of held-out images (M,) of the same kind; low loss means member.

    The interval of the advantage holds for every distribution of losses, and although the best threshold was chosen on
    the same losses (Dvoretzky, Kiefer, Wolfowitz 1956 with the constant of Massart 1990). The interval of the AUC is
    DeLong's (1988). The bound of (epsilon, delta) assumes that each image became a member by a coin flip, or
    replace_one; under add_or_remove_one with a split of fixed sizes it holds up to terms of order 1/N.
    Raises UserError for too few or not finite losses, or epsilon without delta.
    """
    if (epsilon is None) != (delta is None):
        raise UserError("epsilon and delta belong together; give both or neither")
    if not 0 < confidence < 1:
        raise UserError(f"confidence {confidence} is outside (0, 1); 0.95 is customary")
    inside, outside = _losses(members, "members"), _losses(held_out, "held-out images")
    roc = roc_curve(inside, outside)
    slack = sum(math.sqrt(math.log(4 / (1 - confidence)) / (2 * len(part))) for part in (inside, outside))
    interval = (max(0.0, roc.advantage - slack), min(1.0, roc.advantage + slack))
    allowed = None if epsilon is None or delta is None else advantage_bound(epsilon, delta)
    return MembershipResult(
        attack,
        len(inside),
        len(outside),
        roc.auc,
        _auc_interval(inside, outside, confidence),
        roc.advantage,
        interval,
        confidence,
        {f"{rate:g}": roc.tpr_at(rate) for rate in LOW_RATES},
        epsilon,
        delta,
        allowed,
        allowed is not None and interval[0] > allowed,
        epsilon_of_advantage(interval[0], delta or 0.0),
        _thinned(roc),
    )


def _losses(values: ArrayLike, which: str) -> NDArray[np.float64]:
    losses = np.asarray(values, np.float64)
    if losses.ndim != 1 or len(losses) < 2:
        raise UserError(f"losses of {which} have shape {losses.shape}; expected one of each image, at least 2")
    if not np.isfinite(losses).all():
        raise UserError(f"{int((~np.isfinite(losses)).sum())} losses of {which} are not finite")
    return losses


def _auc_interval(inside: NDArray[np.float64], outside: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """DeLong's normal interval, from the variance of each image's share of pairs in the right order."""
    from scipy.stats import norm

    def wins(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> NDArray[np.float64]:
        ordered = np.sort(theirs)
        below = np.searchsorted(ordered, ours, side="left") + np.searchsorted(ordered, ours, side="right")
        return 1 - below / (2 * len(ordered))  # share of the others above, equal ones half

    ours, theirs = wins(inside, outside), wins(outside, inside)
    spread = math.sqrt(ours.var(ddof=1) / len(ours) + theirs.var(ddof=1) / len(theirs))
    reach = float(norm.ppf((1 + confidence) / 2)) * spread
    return max(0.0, float(ours.mean()) - reach), min(1.0, float(ours.mean()) + reach)


def _thinned(roc: Roc) -> tuple[tuple[float, float], ...]:
    kept = np.unique(np.linspace(0, len(roc.fpr) - 1, CURVE_POINTS).round().astype(int))
    return tuple(zip(roc.fpr[kept].tolist(), roc.tpr[kept].tolist(), strict=True))


def draw_roc(results: Sequence[MembershipResult], path: str | Path) -> None:
    """The curves on logarithmic axes, with the line of guessing and, where known, the bound of (epsilon, delta)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    low = 0.5 / max(result.held_out for result in results)
    rates = np.geomspace(low, 1, 200)
    for result in results:
        points = np.array(result.curve).clip(low, 1)
        axes.plot(points[:, 0], points[:, 1], label=f"{result.attack}, AUC {result.auc:.3f}", drawstyle="steps-post")
    axes.plot(rates, rates, color="grey", linestyle="dotted", label="guessing")
    first = results[0]
    if first.epsilon is not None and first.delta is not None:
        label = f"most that epsilon {rounded_up(first.epsilon, 3)} allows"
        axes.plot(rates, tpr_bound(rates, first.epsilon, first.delta), color="black", linestyle="dashed", label=label)
    axes.set(xscale="log", yscale="log", xlabel="held-out images taken for members", ylabel="members found")
    axes.set(xlim=(low, 1), ylim=(low, 1.1), title="membership inference (from private images)")
    axes.legend(fontsize="small")
    write_atomic(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))
