"""`Processes`: several processes of torchrun that make one evaluation together.

All of them read the same images and take the same steps. Two kinds of work are shared out: the features of a batch, by
its images, and independent jobs, such as the training of classifiers. Everything else takes little time and is done by
every process, so that all hold the same values; the first one writes them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from ldm.errors import UserError
from ldm.samples.shards import Shard

Result = TypeVar("Result")

#: How long a process waits for the others: for the longest classifier that another one trains.
PATIENCE = timedelta(days=7)


@dataclass(frozen=True)
class Processes:
    """Process ``rank`` in [0, size) of ``size``; by default a process on its own. All must make the same calls."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes the results."""
        return self.rank == 0

    def rows(self, compute: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """``compute(batch)``, a row for each row of ``batch``: each process computes on a part, all get the whole.

        Equal to one call up to the rounding of another batch size.
        """
        if self.size == 1 or len(batch) < self.size:
            return compute(batch)
        parts = [Shard(rank, self.size).part(len(batch)) for rank in range(self.size)]
        own = compute(batch[parts[self.rank].start : parts[self.rank].stop])
        sent = torch.zeros(max(map(len, parts)), *own.shape[1:], dtype=own.dtype)
        sent[: len(own)] = own.cpu()
        received = [torch.empty_like(sent) for _ in parts]
        distributed.all_gather(received, sent)
        whole = torch.cat([rows[: len(part)] for rows, part in zip(received, parts, strict=True)])
        return whole.to(own.device)

    def share(self, jobs: Sequence[Callable[[], Result]]) -> list[Result]:
        """The results of all jobs, in order; every process does its part of them. Results are plain Python objects."""
        own = {number: jobs[number]() for number in range(self.rank, len(jobs), self.size)}
        if self.size > 1:
            every: list[Any] = [None] * self.size
            distributed.all_gather_object(every, own)
            own = {number: result for part in every for number, result in part.items()}
        return [own[number] for number in range(len(jobs))]


#: A process on its own.
ALONE = Processes()


@contextmanager
def connected() -> Iterator[Processes]:
    """The processes that torchrun started with this one, connected while the body runs; else this one alone.

    They exchange features and scores through the CPU (gloo), whatever device they compute on. Raises UserError when
    there are several and they cannot find each other.
    """
    here = Shard.here()
    if here.whole:
        yield ALONE
        return
    if "MASTER_ADDR" not in os.environ:
        raise UserError(
            f"this is process {here.index + 1} of {here.count} (RANK, WORLD_SIZE), but MASTER_ADDR is not set; start "
            f"the command with torchrun --nproc-per-node {here.count}, or unset RANK and WORLD_SIZE"
        )
    distributed.init_process_group("gloo", rank=here.index, world_size=here.count, timeout=PATIENCE)
    try:
        yield Processes(here.index, here.count)
    finally:
        distributed.destroy_process_group()
