"""Group and layer normalisation: scale and shift are small, so their per-record gradients are materialized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.privacy.engines.layers.contributions import Contribution, Materialized
from ldm.privacy.engines.layers.rule import LayerRule


class GroupNormRule(LayerRule):
    """``nn.GroupNorm``: inputs (R, C, ...)."""

    kinds = (nn.GroupNorm,)

    def contribution(
        self, module: nn.Module, inputs: Tensor, grad: Tensor, records: int, wanted: Sequence[str]
    ) -> Contribution:
        module = cast(nn.GroupNorm, module)
        per_channel = (grad.shape[0], grad.shape[1], -1)
        grad_outputs = grad.float().reshape(per_channel)
        rows = []
        if "weight" in wanted:
            normal = F.group_norm(inputs.float(), module.num_groups, eps=module.eps).reshape(per_channel)
            rows.append(_total_last(normal.mul_(grad_outputs)))
        if "bias" in wanted:
            rows.append(_total_last(grad_outputs))
        return _sum_copies(rows, records)


class LayerNormRule(LayerRule):
    """``nn.LayerNorm`` over any trailing shape: inputs (R, ..., *normalized_shape)."""

    kinds = (nn.LayerNorm,)

    def gradient_layout(self, grad: Tensor) -> Tensor:
        return grad.contiguous()

    def contribution(
        self, module: nn.Module, inputs: Tensor, grad: Tensor, records: int, wanted: Sequence[str]
    ) -> Contribution:
        module = cast(nn.LayerNorm, module)
        per_position = (grad.shape[0], -1, *module.normalized_shape)
        grad_outputs = grad.float().reshape(per_position)
        rows = []
        if "weight" in wanted:
            normal = F.layer_norm(inputs.float(), module.normalized_shape, eps=module.eps).reshape(per_position)
            rows.append(normal.mul_(grad_outputs).sum(1))
        if "bias" in wanted:
            rows.append(grad_outputs.sum(1))
        return _sum_copies(rows, records)


def _total_last(values: Tensor) -> Tensor:
    """Sums over the last axis, as a matrix product, since torch's sum is slow where that axis is short."""
    return values @ values.new_ones(values.shape[-1])


def _sum_copies(rows: Sequence[Tensor], records: int) -> Materialized:
    """Each (records * multiplicity, *shape) -> its sum over each record's noise draws."""
    return Materialized([row if len(row) == records else row.unflatten(0, (records, -1)).sum(1) for row in rows])
