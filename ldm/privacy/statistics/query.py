"""`release`: a sum over records with Gaussian noise on it, and its entry in the ledger."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.privacy.event import ADD_OR_REMOVE_ONE, POISSON, RELATIONS, REPLACE_ONE, SamplingEvent
from ldm.privacy.ledger import Ledger
from ldm.privacy.noise import GaussianNoise
from ldm.privacy.randomness import STATISTICS
from ldm.privacy.validate import number, one_of

logger = logging.getLogger(__name__)

#: Records whose contributions are computed at once.
CHUNK = 4096
#: Released numbers are multiples of 2 to this power, times the noise's standard deviation rounded to a power of two.
GRID = -16


class SumQuery(Protocol):
    """A sum of one bounded contribution a record. Its fields are public constants; records are arguments only."""

    @property
    def name(self) -> str:
        """One word for the query, for the card."""

    @property
    def bound(self) -> float:
        """Largest Euclidean norm of one record's contribution, over all tensors of the sum together."""

    def describe(self) -> dict[str, Any]:
        """The public constants as plain JSON values, for the card."""

    def total(self, records: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The sums over records (N, ...) with labels (N,): named float64 tensors whose shapes do not depend on N.

        The contribution of a record must not depend on any other record, nor on the number of records. A
        record that is not finite, or whose label is outside the classes, contributes nothing.
        """


@dataclass(frozen=True)
class Release:
    """One noisy answer: ``sums`` (float64), the standard deviation of the noise on each number, and its event.

    ``constants`` are the query's public constants. ``count``: entries in the ledger, for an answer computed from
    several noisy sums with one event each. Everything computed from these fields is post-processing.
    """

    name: str
    sums: Mapping[str, Tensor]
    noise_std: float
    event: SamplingEvent
    constants: Mapping[str, Any]
    count: int = 1

    def summary(self) -> dict[str, Any]:
        """The entry of this release on the card; plain JSON values."""
        return {
            "name": self.name,
            "noise_multiplier": self.event.noise_multiplier,
            "relation": self.event.relation,
            "noise_std": self.noise_std,
            "numbers": sum(value.numel() for value in self.sums.values()),
            "constants": dict(self.constants),
            "count": self.count,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain containers and tensors, for a file."""
        return {
            "name": self.name,
            "sums": dict(self.sums),
            "noise_std": self.noise_std,
            "event": self.event.to_dict(),
            "constants": dict(self.constants),
            "count": self.count,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Release:
        """Read :meth:`to_dict` back; raises UserError when a key is missing."""
        try:
            return cls(
                str(values["name"]),
                dict(values["sums"]),
                float(values["noise_std"]),
                SamplingEvent.from_dict(values["event"]),
                dict(values["constants"]),
                int(values.get("count", 1)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"a released statistic is damaged: {type(error).__name__} {error}") from error


def event_of(noise_multiplier: float, relation: str = ADD_OR_REMOVE_ONE) -> SamplingEvent:
    """One query of all records as an accountant sees it: a Gaussian mechanism without sampling."""
    return SamplingEvent(1.0, noise_multiplier, POISSON, relation)


def sensitivity(query: SumQuery, relation: str) -> float:
    """Largest change of the sum by one record: its bound if added or removed, twice that if replaced."""
    return query.bound * (2 if relation == REPLACE_ONE else 1)


def release(
    query: SumQuery,
    records: Tensor,
    labels: Tensor,
    *,
    noise_multiplier: float,
    ledger: Ledger,
    relation: str = ADD_OR_REMOVE_ONE,
    insecure_seed: int | None = None,
) -> Release:
    """Sum the contributions of ``records`` (N, ...) with ``labels`` (N,) int64, and add noise to the sum once.

    Every number gets independent Gaussian noise of standard deviation ``noise_multiplier`` times the sensitivity (Dwork
    and Roth 2014, appendix A), from a generator that the operating system seeds for this call alone, and is rounded
    (`on_grid`). The ledger records the event before the noisy sum exists. With ``insecure_seed`` the noise follows from
    the seed and the number of steps in the ledger, and the release is not private.

    Raises UserError for constants out of range or records and labels that do not belong together.
    """
    one_of("relation", relation, RELATIONS)
    number("the bound of a contribution", query.bound, above=0)
    if labels.shape != (len(records),) or labels.is_floating_point():
        raise UserError(f"{len(records)} records came with labels of shape {tuple(labels.shape)}; one class each")
    event = event_of(noise_multiplier, relation)
    std = noise_multiplier * sensitivity(query, relation)
    sums = query.total(records, labels)
    for name, value in sums.items():
        if value.dtype != torch.float64:
            raise UserError(f"{query.name}: the sum {name} is {value.dtype}, it must be float64")
    start = ledger.steps
    ledger.record(event)
    GaussianNoise(std, insecure_seed=insecure_seed, start=start, purpose=STATISTICS).add_(sums)
    sums = {name: on_grid(value, std) for name, value in sums.items()}
    logger.debug("%s released once with noise multiplier %.4g", query.name, noise_multiplier)
    return Release(query.name, sums, std, event, query.describe())


def on_grid(noisy: Tensor, std: float) -> Tensor:
    """Noisy float64 numbers rounded to multiples of a power of two near std / 65536.

    The generator of the noise makes about 2^52 different numbers in each layer of its ziggurat. A float64 sum plus such
    a number shows in its last bits which sums are possible: without rounding, the numbers of an empty class are told
    from those of a class with one record, whatever the noise multiplier (Mironov 2012). Every multiple of the grid
    comes from at least 2^33 numbers of the generator. Rounding what has noise on it is post-processing.
    """
    step = 2.0 ** (math.floor(math.log2(std)) + GRID)
    return (noisy / step).round() * step


def chunks(records: Tensor, labels: Tensor, classes: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks of records as float64 rows (B, d) with labels; records that must not contribute are left out."""
    for start in range(0, len(records), CHUNK):
        rows = records[start : start + CHUNK].flatten(1).double()
        which = labels[start : start + CHUNK]
        usable = torch.isfinite(rows).all(dim=1) & (which >= 0) & (which < classes)
        yield rows[usable], which[usable]


def clipped(rows: Tensor, norm: float) -> Tensor:
    """Rows (B, k) scaled down to Euclidean norm ``norm`` where they are longer; what float64 cannot hold is 0."""
    lengths = rows.norm(dim=1, keepdim=True)
    return (rows * (norm / lengths.clamp(min=norm))).nan_to_num(nan=0.0)
