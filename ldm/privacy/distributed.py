"""Private steps that several processes take together: each draws and clips its own shard, one sum is noised once.

The mechanism is that of one process. Every record belongs to one shard, so the union of the processes' Poisson draws is
a Poisson draw of the whole set, and a record moves the sum over the processes by at most C. The first process alone
adds noise, of the full standard deviation and before the sums meet: one secret generator makes exactly the noise that
was accounted for, whatever the number of processes, and no process ever holds a sum of all records without it. (Noise
of std / sqrt(processes) from each would do only as long as no two of their generators ever agree.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.utils.data import Sampler

from ldm.errors import UserError
from ldm.privacy.event import POISSON
from ldm.privacy.plan import PrivacyPlan
from ldm.privacy.sampling import PoissonBatchSampler
from ldm.privacy.validate import whole


@dataclass(frozen=True)
class Ranks:
    """Which of the ``size`` processes of a run this one is: ``rank`` in [0, size); one process alone by default.

    Raises UserError for a rank outside this range.
    """

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        whole("number of processes", self.size)
        whole("rank", self.rank, at_least=0)
        if self.rank >= self.size:
            raise UserError(f"rank {self.rank} does not exist among {self.size} processes, counted from 0")

    @property
    def first(self) -> bool:
        """Whether this process adds the noise and writes the files."""
        return self.rank == 0

    def check(self) -> None:
        """Raise RuntimeError unless these are the processes that torch.distributed connects.

        Otherwise each process would take the others' share for its own, or would sum alone what belongs together.
        """
        found = group_ranks()
        if found != self:
            raise RuntimeError(
                f"this private run was shared among {self.size} processes as rank {self.rank}, but torch.distributed "
                f"has {found.size} and calls this one {found.rank}"
            )


def group_ranks() -> Ranks:
    """The processes that torch.distributed connects now; one alone when it connects none."""
    if distributed.is_available() and distributed.is_initialized():
        return Ranks(distributed.get_rank(), distributed.get_world_size())
    return Ranks()


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
    of draws, whichever of them are empty. With ``insecure_seed`` the whole set's draw number i is repeated in every
    process, which keeps its own part: then the union is, record for record, what one process would draw.

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

    @classmethod
    def from_plan(
        cls, plan: PrivacyPlan, num_records: int, steps: int, ranks: Ranks, *, start: int = 0
    ) -> ShardedBatchSampler:
        """The sampler of a plan; ``steps`` draws an iteration, of which ``start`` steps are done.

        Raises UserError for a plan whose batches are of fixed size: parts of fixed size do not make up a uniformly
        random batch of the whole set.
        """
        if plan.sampling != POISSON:
            raise UserError(
                f"the plan accounts for sampling: {plan.sampling}, which several processes cannot draw in parts; "
                "use one device, or Poisson batches"
            )
        return cls(num_records, plan.sample_rate, steps, ranks, insecure_seed=plan.insecure_seed, start=start)

    def __len__(self) -> int:
        return len(self._draws)

    def __iter__(self) -> Iterator[list[int]]:
        for indices in self._draws:
            yield self._own(indices)

    def _own(self, indices: list[int]) -> list[int]:
        if self._repeated:
            return [index for index in indices if index in self.shard]
        return [self.shard[index] for index in indices]


def reduce_sums(sums: Mapping[str, Tensor]) -> None:
    """Replace every float32 tensor, in place, by its sum over the processes; all of them get the same bits.

    One collective call on one flat bucket, in the order of the names, which must be the same everywhere. Alone, nothing
    happens. Raises UserError for another dtype: half precision would round the noise away.
    """
    if group_ranks().size == 1:
        return
    names = sorted(sums)
    for name in names:
        if sums[name].dtype != torch.float32:
            raise UserError(f"the noised sum of {name} is {sums[name].dtype}: keep sums in float32")
    bucket = torch.cat([sums[name].reshape(-1) for name in names])
    distributed.all_reduce(bucket)
    parts = bucket.split([sums[name].numel() for name in names])
    for name, part in zip(names, parts, strict=True):
        sums[name].copy_(part.view_as(sums[name]))


def broadcast_state(module: nn.Module) -> None:
    """Give every process the first one's parameters and buffers: equal updates then keep the copies equal for good."""
    if group_ranks().size == 1:
        return
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            same = tensor.detach().contiguous()
            distributed.broadcast(same, src=0)
            tensor.copy_(same)


def check_agreement(statement: str) -> None:
    """Raise UserError in every process unless all of them make the same statement (a plan's digest, a step count).

    What differs would be a configuration or a checkpoint; neither may depend on the process.
    """
    size = group_ranks().size
    if size == 1:
        return
    statements: list[str | None] = [None] * size
    distributed.all_gather_object(statements, statement)
    for rank, other in enumerate(statements):
        if other != statements[0]:
            raise UserError(
                f"process {rank} runs another plan than process 0, or resumes from another step; give all processes "
                "the same configuration and checkpoint"
            )
