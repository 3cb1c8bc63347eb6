"""Canaries in gradient space: each moves one coordinate of its own, through the real mechanism.

A canary moves a coordinate that no other record moves, by C whenever it is drawn. This is the largest contribution that
clipping allows, and no other record hides it. (Steinke et al., arXiv 2305.08846, call it a Dirac canary.) For the
subsampled Gaussian mechanism this is the worst case that accountants compose, so a large enough audit measures nearly
the claimed epsilon. The coordinates are added to the model as one table; sampler, clipper, noise and ledger treat them
like any other parameter, and the model's own records take part in the same steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.privacy.audit.mechanism import Clipper, Mechanism, PerExampleLoss
from ldm.privacy.event import REPLACE_ONE
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.validate import whole

Floats = np.ndarray[Any, np.dtype[np.float32]]
Counts = np.ndarray[Any, np.dtype[np.int8]]
Bits = np.ndarray[Any, np.dtype[np.bool_]]

_COORDINATES = "canaries.weight"
_INDEX, _CHARGE = "canary_index", "canary_charge"

# A canary's gradient before clipping, in units of C; large enough that automatic clipping scales it to C as well.
_FAR_ABOVE = 1e6

_CANARIES_AT_ONCE = 4096


@dataclass(frozen=True)
class Signals:
    """The view of an auditor: ``m`` canaries in the ``T`` noised sums of a run.

    ``values`` (T, m): the noised sum along each canary's coordinate, over the *claimed* noise standard deviation.
    ``drawn`` (T, m): how often the sampler drew the canary in each step. ``present`` (m,): whether it was in the data
    set, by a fair coin (under ``replace_one``: which of two opposite canaries was). ``claimed_epsilon``: epsilon of the
    run's ledger at the plan's delta.
    """

    values: Floats
    drawn: Counts
    present: Bits
    plan: PrivacyPlan
    claimed_epsilon: float


class WithCanaries(nn.Module):
    """A model beside a table of ``count`` canary coordinates, and the loss of a batch of records and canaries.

    ``bound`` is C. The table starts at zero and only its gradient matters.
    """

    def __init__(self, model: nn.Module | None, loss: PerExampleLoss | None, count: int, bound: float) -> None:
        super().__init__()
        self.model = model if model is not None else nn.Module()
        self.canaries = nn.Embedding(count, 1)
        nn.init.zeros_(self.canaries.weight)
        self.model_loss = loss
        self.scale = bound * _FAR_ABOVE

    def canary_losses(self, rows: Mapping[str, Tensor]) -> Tensor:
        """(R,): linear in the row's coordinate, so that its gradient is the charge (+1 or -1) times ``scale``."""
        coordinate: Tensor = self.canaries(rows[_INDEX])
        return self.scale * rows[_CHARGE] * coordinate.squeeze(1)

    def losses(self, rows: Mapping[str, Tensor]) -> Tensor:
        """(R,): the canary's loss where there is a charge, the model's own loss elsewhere."""
        own = self.canary_losses(rows)
        if self.model_loss is None:
            return own
        others = self.model_loss({key: value for key, value in rows.items() if key not in (_INDEX, _CHARGE)})
        return torch.where(rows[_CHARGE] != 0, own, others.float())


def observe(
    plan: PrivacyPlan,
    *,
    model: nn.Module | None = None,
    loss: PerExampleLoss | None = None,
    records: Mapping[str, Tensor] | None = None,
    canaries: int = 1000,
    mechanism: Mechanism | None = None,
    microbatch: int = 64,
    seed: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Signals:
    """Run all steps of ``plan`` with ``canaries`` canaries beside ``records``; return the signals of their coordinates.

    ``model``, ``loss`` and ``records`` come together or not at all: ``records`` maps names to tensors with one record
    on each place of their first axis, ``loss(rows)`` gives one loss a row for ``plan.noise_multiplicity`` rows a
    record. Every trainable parameter of ``model`` is private. Weights are not updated: a canary's signal does not
    depend on them. ``microbatch`` records go through the model at once; ``seed`` fixes the canaries' coins (tests
    only). ``progress`` is told the number of steps taken after each.

    Raises UserError for arguments that do not fit, and the errors of the clipper.
    """
    whole("canaries", canaries, at_least=2)
    given = [name for name, value in (("model", model), ("loss", loss), ("records", records)) if value is not None]
    if len(given) not in (0, 3):
        raise UserError(f"an audit of a model needs model, loss and records, found only {', '.join(given)}")
    mechanism = mechanism or Mechanism()
    count = count_records(records or {})
    present = np.random.default_rng(seed).random(canaries) < 0.5
    charges = np.where(present, 1.0, -1.0 if plan.relation == REPLACE_ONE else 0.0)
    members = np.flatnonzero(charges)  # the canaries that are records of the data set
    run = _Run(WithCanaries(model, loss, canaries, plan.max_grad_norm), records or {}, charges, plan, microbatch)
    clipper = mechanism.clipper(run.module, run.parameters, plan)
    noise, ledger = mechanism.noise(plan), mechanism.ledger()
    run.show_every_path(clipper)
    values = np.zeros((plan.steps, canaries), np.float32)
    drawn = np.zeros((plan.steps, canaries), np.int8)
    steps = 0
    for step, indices in enumerate(islice(mechanism.sampler(plan, count + len(members)), plan.steps)):
        batch = np.asarray(indices, dtype=np.int64)
        own, met = batch[batch < count], members[batch[batch >= count] - count]
        run.accumulate(clipper, own, met)
        sums = clipper.pop_sums()
        noise.add_(sums)
        ledger.record(plan.event())
        values[step] = sums[_COORDINATES].squeeze(1).cpu().numpy() / plan.noise_std
        np.add.at(drawn[step], met, 1)
        steps += 1
        if progress is not None:
            progress(steps)
    if steps < plan.steps:
        raise UserError(f"the sampler gave {steps} draws, the plan has {plan.steps} steps: an audit needs all of them")
    return Signals(values, drawn, present, plan, ledger.epsilon(plan.delta))


class _Run:
    """Makes batches of records and canaries, and hands them to a clipper."""

    def __init__(
        self,
        module: WithCanaries,
        records: Mapping[str, Tensor],
        charges: np.ndarray[Any, np.dtype[np.float64]],
        plan: PrivacyPlan,
        microbatch: int,
    ) -> None:
        whole("microbatch", microbatch)
        self.device = next(iter(records.values())).device if records else torch.device("cpu")
        self.module = module.to(self.device)
        self.parameters = {name: value for name, value in module.named_parameters() if value.requires_grad}
        self.records = records
        self.charges = torch.tensor(charges, dtype=torch.float32, device=self.device)
        self.multiplicity = plan.noise_multiplicity
        self.microbatch = microbatch

    def accumulate(self, clipper: Clipper, own: np.ndarray[Any, Any], met: np.ndarray[Any, Any]) -> None:
        """Add the clipped gradients of the records ``own`` and of the canaries ``met``, both given by index."""
        for piece in _pieces(own, self.microbatch):
            index = torch.from_numpy(piece).to(self.device)
            clipper.accumulate(self.module.losses, self._rows(index, torch.zeros_like(index), 0.0), self.multiplicity)
        for piece in _pieces(met, _CANARIES_AT_ONCE):
            index = torch.from_numpy(piece).to(self.device)
            rows = rows_of_canaries(index, self.charges[index], self.multiplicity)
            clipper.accumulate(self.module.canary_losses, rows, self.multiplicity)

    def show_every_path(self, clipper: Clipper) -> None:
        """Clip and drop one record and one canary, since a clipper checks its first batch for missing paths."""
        if self.records:
            index = torch.zeros(2, dtype=torch.int64, device=self.device)
            charge = torch.tensor([0.0, 1.0], device=self.device)
            clipper.accumulate(self.module.losses, self._rows(index, index, charge), self.multiplicity)
            clipper.pop_sums()

    def _rows(self, index: Tensor, canary: Tensor, charge: Tensor | float) -> dict[str, Tensor]:
        rows = {key: value[index] for key, value in self.records.items()}
        rows |= {_INDEX: canary, _CHARGE: torch.zeros(len(index), device=self.device) + charge}
        return {key: value.repeat_interleave(self.multiplicity, 0) for key, value in rows.items()}


def rows_of_canaries(index: Tensor, charge: Tensor, multiplicity: int) -> dict[str, Tensor]:
    """The rows of canaries, record-major: their coordinates (B,) int64 and signs (B,) fp32."""
    rows = {_INDEX: index, _CHARGE: charge}
    return {key: value.repeat_interleave(multiplicity, 0) for key, value in rows.items()}


def _pieces(index: np.ndarray[Any, Any], size: int) -> Iterator[np.ndarray[Any, Any]]:
    for start in range(0, len(index), size):
        yield index[start : start + size]


def count_records(records: Mapping[str, Tensor]) -> int:
    """The common leading size of the tensors, 0 for none; UserError where they differ or use a name of the audit."""
    sizes = {key: len(value) for key, value in records.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(f"the records have tensors of different lengths: {sizes}; give each one entry a record")
    for reserved in (_INDEX, _CHARGE):
        if reserved in records:
            raise UserError(f"the audit itself uses the name {reserved!r}; rename that tensor of the records")
    return next(iter(sizes.values()), 0)
