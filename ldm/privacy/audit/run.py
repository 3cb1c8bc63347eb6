"""`audit`: run a plan with canaries, and bound the run's leak from below."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ldm.errors import UserError
from ldm.privacy.audit.canaries import Signals, observe
from ldm.privacy.audit.f_dp import f_dp_bound
from ldm.privacy.audit.gaussian import gaussian_bound
from ldm.privacy.audit.mechanism import Mechanism, PerExampleLoss
from ldm.privacy.audit.one_run import one_run_bound
from ldm.privacy.audit.result import AuditResult
from ldm.privacy.audit.scores import membership_scores
from ldm.privacy.event import POISSON
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.validate import number, one_of

_STATISTICS = {
    "gaussian": "mean shift and deviation of the noised sum along each canary, step by step",
    "f_dp": "coins guessed from the likelihood ratio over all steps, against the plan's whole trade-off curve",
    "one_run": "coins guessed from the likelihood ratio over all steps, against (epsilon, delta)",
}
METHODS = tuple(_STATISTICS)


def audit(
    plan: PrivacyPlan,
    *,
    model: nn.Module | None = None,
    loss: PerExampleLoss | None = None,
    records: Mapping[str, Tensor] | None = None,
    canaries: int = 1000,
    method: str = "gaussian",
    confidence: float = 0.95,
    mechanism: Mechanism | None = None,
    microbatch: int = 64,
    seed: int | None = None,
) -> AuditResult:
    """Take all steps of ``plan`` with ``canaries`` canaries in the data set and bound epsilon from below.

    ``model``, ``loss`` and ``records`` (public or made-up ones, since an audit protects nothing) put the user's own
    model through the same steps; without them the mechanism is audited on the canaries alone. ``method``:

    * ``gaussian``: actual noise multiplier and sampling rate, step by step; tight with a thousand canaries;
      assumes Poisson sampling and Gaussian noise of some size (:mod:`ldm.privacy.audit.gaussian`);
    * ``f_dp``: any mechanism, against the plan's trade-off curve; reaches about half of the claim
      with ten thousand canaries (:mod:`ldm.privacy.audit.f_dp`);
    * ``one_run``: any mechanism and any accountant, against (epsilon, delta) alone; loose for Gaussian noise
      (:mod:`ldm.privacy.audit.one_run`).

    Under ``per_layer`` clipping of L layers, the canary table included, a canary moves only C / sqrt(L), and the bound
    is looser by as much.

    >>> plan = PrivacyPlan(
    ...     sample_rate=0.1, steps=20, noise_multiplier=1.0, max_grad_norm=1.0, delta=1e-5, expected_batch_size=100
    ... )
    >>> result = audit(plan, canaries=20_000)
    >>> 0.8 < result.share < 1  # 0.95, give or take
    True

    Raises UserError for an unknown method, a confidence outside (0, 1), and a plan that the method does not cover.
    """
    signals = observe(
        plan,
        model=model,
        loss=loss,
        records=records,
        canaries=canaries,
        mechanism=mechanism,
        microbatch=microbatch,
        seed=seed,
    )
    return judge(signals, method, confidence)


def judge(signals: Signals, method: str = "gaussian", confidence: float = 0.95) -> AuditResult:
    """The bound of one method on the signals of :func:`observe`; several methods may use the same run.

    Each result has its own ``confidence``; the largest of several results on one run has less.
    """
    one_of("audit method", method, METHODS)
    number("confidence", confidence, above=0)
    if confidence >= 1:
        raise UserError(f"confidence is {confidence!r}, it must be below 1, e.g. 0.95")
    plan = signals.plan
    if method != "one_run" and plan.sampling != POISSON:
        raise UserError(f"audit method {method} judges Poisson plans, this one draws {plan.sampling}; take one_run")
    if method == "gaussian":
        bound = gaussian_bound(signals, confidence)
    elif method == "f_dp":
        bound = f_dp_bound(membership_scores(signals), signals.present, plan, confidence)
    else:
        bound = one_run_bound(membership_scores(signals), signals.present, plan.delta, confidence)
    return AuditResult(
        claimed_epsilon=signals.claimed_epsilon,
        lower_bound=bound,
        delta=plan.delta,
        confidence=confidence,
        canaries=len(signals.present),
        steps=plan.steps,
        statistic=_STATISTICS[method],
        method=method,
    )
