"""Batch samplers whose draws an accountant can analyse: Poisson batches, and fixed-size ones as second choice."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from ldm.errors import UserError
from ldm.privacy.event import POISSON, WITHOUT_REPLACEMENT, SamplingEvent
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.randomness import SAMPLING, secret_generator, seeded_generator
from ldm.privacy.validate import number, whole


class _Draws(Sampler[list[int]]):
    """Yields ``steps`` index lists an iteration, each drawn afresh; iterating again goes on with new draws.

    The order of the indices says nothing (they are ascending), and no draw depends on another.
    Draws happen where the sampler is iterated, which in a DataLoader is the main process, whatever its workers do.
    """

    def __init__(
        self,
        num_records: int,
        steps: int,
        generator: np.random.Generator | None,
        insecure_seed: int | None,
        start: int,
    ):
        whole("num_records", num_records)
        whole("steps", steps)
        whole("start", start, at_least=0)
        if generator is not None and insecure_seed is not None:
            raise UserError("give a generator or an insecure_seed to the batch sampler, not both")
        self.num_records = num_records
        self.steps = steps
        self.drawn = start
        self._seed = insecure_seed
        self._generator = generator if generator is not None or insecure_seed is not None else secret_generator()

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.steps):
            yield self.draw()

    def draw(self) -> list[int]:
        """The next batch: ascending record indices."""
        generator = self._generator
        if generator is None:
            assert self._seed is not None
            generator = seeded_generator(self._seed, SAMPLING, self.drawn)
        self.drawn += 1
        indices: list[int] = self._choose(generator).tolist()
        return indices

    def _choose(self, generator: np.random.Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        raise NotImplementedError


class PoissonBatchSampler(_Draws):
    """Each draw contains every record independently with probability ``sample_rate``; draws may be empty.

    ``num_records`` >= 1 records, ``sample_rate`` in (0, 1], ``steps`` draws an iteration. The generator is seeded by
    the operating system unless one is given, or ``insecure_seed``: then draw number i is a function of the seed and i
    alone, counted from ``start``, so that a resumed run continues the sequence.

    Raises UserError for values out of range.
    """

    def __init__(
        self,
        num_records: int,
        sample_rate: float,
        steps: int,
        generator: np.random.Generator | None = None,
        *,
        insecure_seed: int | None = None,
        start: int = 0,
    ):
        number("sample_rate", sample_rate, above=0, at_most=1)
        super().__init__(num_records, steps, generator, insecure_seed, start)
        self.sample_rate = sample_rate

    @classmethod
    def from_plan(cls, plan: PrivacyPlan, num_records: int, *, start: int = 0) -> PoissonBatchSampler:
        """The sampler of a plan over ``num_records`` records, ``start`` steps of which are done.

        ``num_records`` is the length of the data set at hand; the plan's own number is not consulted, because the rate
        must not move when a record is added. Raises UserError for a plan with another sampling or without steps left.
        """
        _expect(plan.event(), POISSON)
        return cls(num_records, plan.sample_rate, _left(plan, start), insecure_seed=plan.insecure_seed, start=start)

    def _choose(self, generator: np.random.Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        # float64: the chance of a record differs from sample_rate by less than 2^-53
        return np.flatnonzero(generator.random(self.num_records) < self.sample_rate)


class FixedSizeBatchSampler(_Draws):
    """Each draw is a uniformly random set of exactly ``batch_size`` records, independent of the other draws.

    This is not an epoch of a shuffled loader, for which there is no tight analysis. Account it as
    ``without_replacement`` under ``replace_one`` with sample rate ``batch_size / num_records``: the number of records
    is public under that relation. Raises UserError for values out of range.
    """

    def __init__(
        self,
        num_records: int,
        batch_size: int,
        steps: int,
        generator: np.random.Generator | None = None,
        *,
        insecure_seed: int | None = None,
        start: int = 0,
    ):
        whole("batch_size", batch_size)
        super().__init__(num_records, steps, generator, insecure_seed, start)
        if batch_size > num_records:
            raise UserError(f"batch_size {batch_size} exceeds the {num_records} records")
        self.batch_size = batch_size

    @classmethod
    def from_plan(cls, plan: PrivacyPlan, num_records: int, *, start: int = 0) -> FixedSizeBatchSampler:
        """The sampler of a plan, with the largest batch whose share of the records is within the plan's sample rate."""
        _expect(plan.event(), WITHOUT_REPLACEMENT)
        batch_size = int(plan.sample_rate * num_records * (1 + 1e-12))
        return cls(num_records, batch_size, _left(plan, start), insecure_seed=plan.insecure_seed, start=start)

    def _choose(self, generator: np.random.Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        return np.sort(generator.choice(self.num_records, self.batch_size, replace=False, shuffle=False))


def _expect(event: SamplingEvent, sampling: str) -> None:
    if event.sampling != sampling:
        raise UserError(f"the plan accounts for sampling: {event.sampling}, this sampler draws {sampling} batches")


def _left(plan: PrivacyPlan, start: int) -> int:
    if start >= plan.steps:
        raise UserError(f"the plan has {plan.steps} steps and {start} are done: nothing is left to draw")
    return plan.steps - start
