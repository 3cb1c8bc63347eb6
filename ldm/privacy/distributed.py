"""Private steps that several processes take together: each draws and clips its own shard, one sum is noised once.

The mechanism is that of one process. Every record belongs to one shard, so the union of the processes' Poisson draws is
a Poisson draw of the whole set, and a record moves the sum over the processes by at most C. The first process alone
adds noise, of the full standard deviation and before the sums meet: one secret generator makes exactly the noise that
was accounted for, whatever the number of processes, and no process ever holds a sum of all records without it. (Noise
of std / sqrt(processes) from each would do only as long as no two of their generators ever agree.)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, distributed, nn

from ldm.errors import UserError
from ldm.privacy.ranks import group_ranks


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
