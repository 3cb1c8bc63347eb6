"""Batch samplers that accountants can analyse: Poisson batches, and fixed-size batches as second choice.

`sampler_from_plan` makes the sampler of a plan:

>>> from ldm.privacy.plan import PrivacyPlan
>>> plan = PrivacyPlan(
...     sample_rate=0.5, steps=8, noise_multiplier=1.0, max_grad_norm=1.0, delta=1e-5, expected_batch_size=3,
...     insecure_seed=1,  # for a printed example only: without it every draw is secret
... )
>>> sampler = sampler_from_plan(plan, num_records=6)
>>> len(sampler)  # draws an epoch, in which a record is expected once
2
>>> list(sampler)  # batch sizes vary, and a batch may be empty
[[1, 2, 3, 5], [1, 2, 3]]
>>> next(iter(sampler_from_plan(plan, num_records=6, start=1)))  # resumed after one step
[1, 2, 3]
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from ldm.errors import UserError
from ldm.privacy.event import POISSON
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.randomness import SAMPLING, secret_generator, seeded_generator
from ldm.privacy.ranks import Ranks
from ldm.privacy.validate import number, whole


class _Draws(Sampler[list[int]]):
    """Yields ``steps`` index lists an iteration, each drawn afresh; iterating again goes on with new draws.

    The indices are ascending, so their order reveals nothing, and no draw depends on another. Draws happen in the
    process that iterates the sampler, in a DataLoader the main process for any number of workers.
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
    the operating system unless one is given, or ``insecure_seed``, with which draw number i, counted from ``start``, is
    a function of the seed and i alone, so that a resumed run continues the sequence.

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

    def _choose(self, generator: np.random.Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        # float64: the chance of a record differs from sample_rate by less than 2^-53
        return np.flatnonzero(generator.random(self.num_records) < self.sample_rate)


class FixedSizeBatchSampler(_Draws):
    """Each draw is a uniformly random set of exactly ``batch_size`` records, independent of the other draws.

    This is not an epoch of a shuffled loader, for which there is no tight analysis. Account it as
    ``without_replacement`` under ``replace_one`` with sample rate ``batch_size / num_records``; the number of records
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

    def _choose(self, generator: np.random.Generator) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
        return np.sort(generator.choice(self.num_records, self.batch_size, replace=False, shuffle=False))


def shard_indices(num_records: int, rank: int, world: int) -> range:
    """The records of one process: every ``world``-th one. Shards are disjoint, cover all and differ by one at most.

    Raises UserError when there are fewer records than processes.
    """
    ranks = Ranks(rank, world)
    whole("num_records", num_records)
    if num_records < world:
        raise UserError(f"{num_records} records cannot be shared among {world} processes; use fewer devices")
    return range(ranks.rank, num_records, ranks.size)


class ShardedBatchSampler(Sampler[list[int]]):
    """One process's part of each Poisson draw: indices into the whole set, ascending, all of its own shard.

    Every process has an independent generator seeded by the operating system and draws from its shard only; the union
    over the processes is a Poisson draw of the whole set at the same rate. All processes iterate over the same number
    of draws, empty ones included. With ``insecure_seed`` every process repeats draw number i of the whole set and keeps
    its own part, so the union equals the draw of a single process.

    Raises UserError for values out of range.
    """

    def __init__(
        self,
        num_records: int,
        sample_rate: float,
        steps: int,
        ranks: Ranks,
        generator: np.random.Generator | None = None,
        *,
        insecure_seed: int | None = None,
        start: int = 0,
    ):
        self.shard = shard_indices(num_records, ranks.rank, ranks.size)
        self._repeated = insecure_seed is not None
        drawn_from = num_records if self._repeated else len(self.shard)
        self._draws = PoissonBatchSampler(
            drawn_from, sample_rate, steps, generator, insecure_seed=insecure_seed, start=start
        )

    def __len__(self) -> int:
        return len(self._draws)

    def __iter__(self) -> Iterator[list[int]]:
        for indices in self._draws:
            yield self._own(indices)

    def _own(self, indices: list[int]) -> list[int]:
        if self._repeated:
            return [index for index in indices if index in self.shard]
        return [self.shard[index] for index in indices]


def sampler_from_plan(
    plan: PrivacyPlan, num_records: int, *, draws: int | None = None, start: int = 0, ranks: Ranks | None = None
) -> PoissonBatchSampler | FixedSizeBatchSampler | ShardedBatchSampler:
    """The sampler whose draws ``plan`` accounts for; training and audits must use no other.

    ``num_records`` is the length of the data set. A Poisson sampler ignores the plan's own number of records, since the
    rate must not change when a record is added. An iteration yields ``draws`` batches, by default an epoch, in which a
    record is expected once; iterating again continues with new draws. ``start`` is the number of steps already taken.
    With several ``ranks`` the draws are this process's parts.

    Raises UserError when a batch of fixed size would be a larger share of the records than the plan accounts for, and
    when several processes would draw parts of one, since parts of fixed size do not form a uniformly random batch.
    """
    count = math.ceil(1.0 / plan.sample_rate - 1e-9) if draws is None else draws
    seed = plan.insecure_seed
    if plan.sampling == POISSON:
        if ranks is None or ranks.size == 1:
            return PoissonBatchSampler(num_records, plan.sample_rate, count, insecure_seed=seed, start=start)
        return ShardedBatchSampler(num_records, plan.sample_rate, count, ranks, insecure_seed=seed, start=start)
    if ranks is not None and ranks.size > 1:
        raise UserError(
            f"the plan accounts for sampling: {plan.sampling}, which several processes cannot draw in parts; "
            "use one device, or Poisson batches"
        )
    size = int(plan.expected_batch_size)
    if size > plan.sample_rate * num_records * (1 + 1e-9):
        raise UserError(
            f"the training set has {num_records} records, fewer than the run was planned for: batches of {size} would "
            f"be a larger share of it than the {plan.sample_rate:.4g} that is accounted for"
        )
    return FixedSizeBatchSampler(num_records, size, count, insecure_seed=seed, start=start)
