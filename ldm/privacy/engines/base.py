"""The interface of every engine: from a loss and a batch to the sum of clipped per-record gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ldm.errors import UserError

Rows = Mapping[str, Tensor]
PerExampleLoss = Callable[[Rows], Tensor]
Factors = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Groups:
    """Parameter groups that are clipped on their own: ``index`` gives the group of each parameter name."""

    index: Mapping[str, int]
    count: int


@dataclass(frozen=True)
class ClippedSums:
    """``sums``: fp32 clipped sum per parameter name that the loss reached; ``skipped``: records left out.

    When ``skipped`` is a tensor (unchecked sums) and it is not zero, the sums are worth nothing.
    """

    sums: dict[str, Tensor]
    skipped: int | Tensor


@dataclass(frozen=True)
class Request:
    """How the records of a microbatch are summed.

    ``records``: how many there are, with ``multiplicity`` rows each. Those from number ``weighted`` on (None: all have
    weight) only keep the shapes constant: they contribute exactly zero and are not counted as skipped. ``checked``:
    leave out records without finite gradients, for which the host waits for the device; otherwise only count them.
    """

    records: int
    multiplicity: int = 1
    weighted: int | None = None
    checked: bool = True

    @property
    def counted(self) -> int:
        """The number of records that contribute."""
        return self.records if self.weighted is None else self.weighted

    @property
    def rows(self) -> int:
        """The number of rows."""
        return self.records * self.multiplicity


class Engine(Protocol):
    """Computes clipped sums of one microbatch. It leaves no hook, no ``.grad`` and no buffer behind."""

    def clipped_sums(
        self, loss: PerExampleLoss, rows: Rows, request: Request, groups: Groups, factors: Factors
    ) -> ClippedSums:
        """Sum over records of factor times gradient of the mean loss of the record's rows.

        ``factors`` maps squared norms (groups, records) to clip factors of the same shape. A record with a non-finite
        norm in any group contributes exactly zero and is counted.
        """


def per_example_losses(loss: PerExampleLoss, rows: Rows, count: int) -> Tensor:
    """Call ``loss`` and check that it returns one differentiable loss a row: (count,) fp32."""
    losses = loss(rows)
    if losses.shape != (count,):
        raise UserError(
            f"the loss answered shape {tuple(losses.shape)} for {count} rows; return one number a row, shape ({count},)"
        )
    if not losses.requires_grad:
        raise UserError("the loss does not depend on any private parameter; check that they are not frozen or detached")
    return losses.float()
