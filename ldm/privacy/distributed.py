"""Private steps of several processes: each draws and clips its own shard, and the noise is added once.

The mechanism is that of one process. Every record belongs to one shard, so the union of the processes' Poisson draws is
a Poisson draw of the whole set, and a record moves the sum over the processes by at most C. Only the first process adds
noise, with the full standard deviation and before the sums are reduced. So one secret generator makes exactly the
accounted noise for any number of processes, and no process ever holds a sum of all records without it. (Noise of std /
sqrt(processes) from each process would be enough only if no two of their generators ever agree.)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, distributed, nn

from ldm.errors import UserError
from ldm.privacy.ranks import group_ranks
from ldm.privacy.sums import whole_tensors


def reduce_sums(sums: Mapping[str, Tensor]) -> None:
    """Replace every float32 tensor, in place, by its sum over the processes; all of them get the same bits.

    One collective call, on the flat tensor of `FlatSums` itself or on one flat copy, in the order of the names, which
    must be the same in every process. With one process nothing happens. Raises UserError for another dtype, since half
    precision would round the noise away.
    """
    if group_ranks().size == 1:
        return
    for name, tensor in sums.items():
        if tensor.dtype != torch.float32:
            raise UserError(f"the noised sum of {name} is {tensor.dtype}: keep sums in float32")
    tensors = whole_tensors(sums)
    if len(tensors) == 1 and tensors[0].is_contiguous():
        distributed.all_reduce(tensors[0])
        return
    bucket = torch.cat([tensor.reshape(-1) for tensor in tensors])
    distributed.all_reduce(bucket)
    parts = bucket.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


def broadcast_state(module: nn.Module) -> None:
    """Give every process the first one's parameters and buffers; equal updates then keep the copies equal."""
    if group_ranks().size == 1:
        return
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            same = tensor.detach().contiguous()
            distributed.broadcast(same, src=0)
            tensor.copy_(same)


def check_agreement(statement: str) -> None:
    """Raise UserError in every process unless all of them make the same statement (a plan's digest, a step count).

    Configuration and checkpoint must not depend on the process.
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
