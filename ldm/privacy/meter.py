"""`EpsilonMeter`: the epsilon spent so far, cheap enough to compute after every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from dp_accounting.rdp import rdp_privacy_accountant as rdp_library

from ldm.privacy.accounting import Spending, accountants_for, epsilon, joint_epsilon, merge_history, rdp_vector
from ldm.privacy.event import History
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.validate import whole


class EpsilonMeter:
    """Epsilon spent after so many steps of a plan, cheap enough for a progress bar and never below the exact value.

    The smaller of two upper bounds: the Renyi epsilon of the steps taken, and the PLD epsilon at the next of a few
    milestones (eighths of the plan, computed when first needed), so the last step shows the plan's own epsilon.
    ``history``: the run's events outside its steps, and ``others``: what other runs have spent; both are charged too.
    With a selection every value is the exact Renyi one.
    """

    def __init__(self, plan: PrivacyPlan, history: History = (), milestones: int = 8, others: Sequence[Spending] = ()):
        self.plan = plan
        self._own = list(history)
        self._others = tuple(others)
        self._selected = plan.selection is not None or any(selection is not None for _, selection in others)
        if not self._selected:
            history = [*history, *(entry for events, _ in others for entry in events)]
        self._event = plan.event()
        self._history = merge_history(history)
        able = accountants_for([*self._history, (self._event, 1)])
        self._tight = able[0] if able else "pld"
        self._stride = max(1, math.ceil(plan.steps / milestones))
        self._at_milestone: dict[int, float] = {}
        self._renyi = "rdp" in able
        self._orders = np.array(rdp_library.DEFAULT_RDP_ORDERS)
        self._step_rdp: np.ndarray[Any, np.dtype[np.float64]] | None = None
        self._past_rdp = np.zeros(len(self._orders))

    def __call__(self, steps: int) -> float:
        """Upper bound on epsilon at the plan's delta after ``steps`` steps of the plan."""
        whole("steps", steps, at_least=0)
        if self._selected:
            run = [*self._own, *([(self._event, steps)] if steps else [])]
            return joint_epsilon([*self._others, (run, self.plan.selection)], self.plan.delta)
        if steps == 0 and not self._history:
            return 0.0
        milestone = min(math.ceil(steps / self._stride) * self._stride, max(steps, self.plan.steps))
        if milestone not in self._at_milestone:
            self._at_milestone[milestone] = epsilon(
                [*self._history, (self._event, milestone)], self.plan.delta, self._tight
            )
        return min(self._at_milestone[milestone], self._renyi_bound(steps))

    def _renyi_bound(self, steps: int) -> float:
        if not self._renyi:
            return math.inf
        if self._step_rdp is None:
            self._step_rdp = rdp_vector(self._event)
            self._past_rdp = sum((count * rdp_vector(event) for event, count in self._history), self._past_rdp)
        spent = self._past_rdp + steps * self._step_rdp if steps else self._past_rdp  # 0 * inf is no number
        return _fast_epsilon(self._orders, spent, self.plan.delta)


def _fast_epsilon(
    orders: np.ndarray[Any, np.dtype[np.float64]], rdp: np.ndarray[Any, np.dtype[np.float64]], delta: float
) -> float:
    """Renyi divergences to epsilon, best order (Canonne, Kamath, Steinke 2020, arXiv 2004.00010, Proposition 12)."""
    usable = (orders > 1) & np.isfinite(rdp)
    if not usable.any():
        return math.inf
    order = orders[usable]
    candidates = rdp[usable] + np.log1p(-1 / order) - np.log(delta * order) / (order - 1)
    return max(0.0, float(candidates.min()))
