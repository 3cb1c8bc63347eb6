"""`audit_sensitivity`: neighbouring data sets through the clipper, on the user's own model and layers.

The proof of a private step needs one number, the sensitivity of the clipped sum to one record. This audit measures it:
it computes the sum with and without each record, or with another record in its place. (arXiv 2602.17454 audits
libraries in this way.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.privacy.audit.canaries import count_records
from ldm.privacy.audit.mechanism import Mechanism, PerExampleLoss
from ldm.privacy.event import sensitivity
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.validate import whole

# The difference of two fp32 sums of n contributions of norm C is off by about this much times n C.
_ROUNDING = 2.0**-23


@dataclass(frozen=True)
class SensitivityResult:
    """How far one record moved the clipped sum, in units of C.

    ``largest`` is the largest change over ``records`` records, ``record`` the index of its record, ``bound`` the plan's
    limit (1, or 2 under ``replace_one``), ``tolerance`` the possible fp32 rounding error of the measurement.
    ``smallest`` near 1 means that clipping to C acted on every record; when ``largest`` is far below the bound, nothing
    was clipped and the measurement says little.
    """

    largest: float
    smallest: float
    record: int
    records: int
    bound: float
    tolerance: float

    @property
    def exceeded(self) -> bool:
        """Whether a record moved the sum further than the bound plus tolerance, or by a value that is not finite."""
        return not self.largest <= self.bound + self.tolerance

    def verdict(self) -> str:
        """One line for people."""
        measured = f"one of {self.records} records moves the clipped sum by up to {self.largest:.7g} C"
        if self.exceeded:
            return (
                f"EXCEEDED: {measured}, the noise is made for {self.bound:g} C (record {self.record}): do not publish"
            )
        return f"consistent: {measured}, at most {self.bound:g} C is allowed"

    def to_dict(self) -> dict[str, Any]:
        """The fields and the verdict as plain JSON values, for a release card."""
        return {**asdict(self), "exceeded": self.exceeded, "verdict": self.verdict()}


def audit_sensitivity(
    model: nn.Module,
    plan: PrivacyPlan,
    loss: PerExampleLoss,
    rows: Mapping[str, Tensor],
    *,
    mechanism: Mechanism | None = None,
    batch: int = 8,
    limit: int = 64,
) -> SensitivityResult:
    """Measure how far leaving out, or replacing, each of the first ``limit`` records moves the clipped sum.

    ``rows`` (public or made-up ones) are the clipper's input: tensors of leading size B * K, record-major, with K =
    ``plan.noise_multiplicity``. They must contain the random numbers of the loss (timesteps, noises), so that
    ``loss(rows)``, one loss a row, gives the same value for the same row; the bound holds for fixed random numbers.
    Each record is measured among ``batch`` - 1 others. Every trainable parameter of ``model`` is private. Costs
    ``limit`` + ``limit`` / ``batch`` clipped sums of at most ``batch`` records.

    Raises UserError for fewer than two records, for a number of rows that K does not divide, and the errors of the
    clipper.
    """
    whole("batch", batch, at_least=2)
    whole("limit", limit, at_least=2)
    multiplicity = plan.noise_multiplicity
    count, rest = divmod(count_records(rows), multiplicity)
    if rest or count < 2:
        raise UserError(
            f"{count * multiplicity + rest} rows were given: a sensitivity audit needs {multiplicity} for "
            "each of at least two records"
        )
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    clipper = (mechanism or Mechanism()).clipper(model, parameters, plan)
    replaced = sensitivity(1.0, plan.relation) > 1

    def total(places: list[int]) -> Tensor:
        owned = {key: value.unflatten(0, (-1, multiplicity))[places].flatten(0, 1) for key, value in rows.items()}
        clipper.accumulate(loss, owned, multiplicity)
        sums = clipper.pop_sums()
        return torch.cat([sums[name].double().flatten().cpu() for name in sorted(sums)])

    changes: list[float] = []
    for start in range(0, min(count, limit), batch):
        group = list(range(start, min(start + batch, count, limit)))
        everyone = total(group)
        for place in group:
            neighbour = [(other + 1) % count if other == place else other for other in group]
            others = total(neighbour if replaced else [other for other in group if other != place])
            changes.append(float((everyone - others).norm()) / plan.max_grad_norm)
    worst = max(range(len(changes)), key=lambda place: changes[place] if math.isfinite(changes[place]) else math.inf)
    return SensitivityResult(
        largest=changes[worst],
        smallest=min(changes),
        record=worst,
        records=len(changes),
        bound=sensitivity(1.0, plan.relation),
        tolerance=1e-6 + _ROUNDING * batch,
    )
