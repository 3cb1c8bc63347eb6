"""Counts the operations that a computation launches: on a GPU each is a kernel, and small networks wait for those.

They are counted on a CPU that stacks layers as a GPU does, see `ldm.privacy.engines.layers.stacked`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.workloads import SIZES, build, make_rows
from ldm.privacy.clipping import Clipping, PerRecordClipper
from ldm.privacy.engines.layers import stacked

#: Views and allocations, which launch nothing.
FREE = frozenset(
    {
        "detach",
        "view",
        "_unsafe_view",
        "reshape",
        "_reshape_alias",
        "t",
        "transpose",
        "permute",
        "unsqueeze",
        "squeeze",
        "expand",
        "slice",
        "select",
        "split",
        "split_with_sizes",
        "chunk",
        "unbind",
        "as_strided",
        "alias",
        "diagonal",
        "empty",
        "empty_like",
        "empty_strided",
        "new_empty",
        "new_empty_strided",
        "lift_fresh",
        "is_same_size",
        "unfold",
        "unflatten",
    }
)


class Operations(TorchDispatchMode):
    """Context manager that counts aten operations by name, below autograd, in ``counts``."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket._qualified_op_name.partition("::")[2]
        if name not in FREE:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def count(work: Callable[[], object]) -> int:
    """The number of operations of ``work()``."""
    with Operations() as operations:
        work()
    return operations.counts.total()


def microbatch_operations(size: str, selection: str, records: int) -> tuple[int, int]:
    """Operations of one microbatch: forward and backward without privacy; the same with norms and clipped sums."""
    model = build(SIZES[size], torch.device("cpu"), selection)
    rows = make_rows(SIZES[size], records, 1, torch.device("cpu"))
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    plain = count(lambda: model.per_example_losses(rows).mean().backward())
    model.zero_grad(set_to_none=True)
    clipper = PerRecordClipper(model, trained, Clipping(1.0))
    with patch.dict(stacked.MOST_COPIED, clear=True):
        clipper.accumulate(model.per_example_losses, rows)  # the buffer of the sums, and the check of paths
        return plain, count(lambda: clipper.accumulate(model.per_example_losses, rows))
