"""How many records of a private step are computed on at once: as many as the memory holds, found by trying."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

#: A Poisson draw has more than its expected size plus this many standard deviations once in 30,000 steps.
_SPREAD = 4.0

#: Share of the free memory that a CPU's microbatch may take, and the most bytes: larger ones gain nothing there.
_SHARE, _MOST_BYTES = 0.5, 2 << 30

#: The engine keeps inputs and output gradients, and makes temporaries, besides what autograd saves.
_OVERHEAD = 2.5


def fitting_size(expected: float, halvings: int) -> int:
    """Records of one of 2^``halvings`` equal microbatches of a draw that is large for its expected size."""
    return max(1, math.ceil((expected + _SPREAD * math.sqrt(expected)) / 2**halvings))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def largest_that_runs(expected: float, attempt: Callable[[int], None]) -> int:
    """The largest `fitting_size` for which ``attempt`` does not run out of memory; 1 is taken on trust."""
    halvings = 0
    while (size := fitting_size(expected, halvings)) > 1:
        try:
            attempt(size)
            return size
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
        logger.info("%d records at once do not fit into the memory", size)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        halvings += 1
    return 1


def size_by_estimate(
    expected: float, loss: Callable[[Mapping[str, Tensor]], Tensor], rows: Mapping[str, Tensor]
) -> int:
    """The largest `fitting_size` for a CPU, from what autograd saves for ``rows`` of one record.

    A CPU does not say that its memory is full; the system ends the process.
    """
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        losses = loss(rows)
    del losses
    record = max(1, sum(kept.values())) * _OVERHEAD
    limit = min(_SHARE * free_memory(), _MOST_BYTES)
    halvings = 0
    while (size := fitting_size(expected, halvings)) > 1 and size * record > limit:
        halvings += 1
    return size


def free_memory() -> int:
    """Bytes of memory that a process may still take; 4 GiB where the system does not tell."""
    information = Path("/proc/meminfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 4 << 30


def filled(rows: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """``rows`` (n, ...) with copies of the first one up to ``count`` rows."""
    missing = {key: value[:1].expand(count - len(value), *value.shape[1:]) for key, value in rows.items()}
    return {key: torch.cat([value, missing[key]]) for key, value in rows.items()}
