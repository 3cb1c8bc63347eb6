"""Group and layer normalisation: scale and shift are small, so their per-record gradients are written out at once."""

from __future__ import annotations

from collections.abc import Collection

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.privacy.layers.contributions import Contribution, WrittenOut
from ldm.privacy.layers.rule import LayerRule


class GroupNormRule(LayerRule):
    """``nn.GroupNorm``: inputs (R, C, ...)."""

    def contributions(
        self, module: nn.Module, inputs: Tensor, grad: Tensor, records: int, wanted: Collection[str]
    ) -> dict[str, Contribution]:
        assert isinstance(module, nn.GroupNorm)
        per_channel = (grad.shape[0], grad.shape[1], -1)
        slopes = grad.float().reshape(per_channel)
        found: dict[str, Contribution] = {}
        if "weight" in wanted:
            normal = F.group_norm(inputs.float(), module.num_groups, eps=module.eps).reshape(per_channel)
            found["weight"] = _sum_copies((slopes * normal).sum(2), records)
        if "bias" in wanted:
            found["bias"] = _sum_copies(slopes.sum(2), records)
        return found


class LayerNormRule(LayerRule):
    """``nn.LayerNorm`` over any trailing shape: inputs (R, ..., *normalized_shape)."""

    def contributions(
        self, module: nn.Module, inputs: Tensor, grad: Tensor, records: int, wanted: Collection[str]
    ) -> dict[str, Contribution]:
        assert isinstance(module, nn.LayerNorm)
        per_position = (grad.shape[0], -1, *module.normalized_shape)
        slopes = grad.float().reshape(per_position)
        found: dict[str, Contribution] = {}
        if "weight" in wanted:
            normal = F.layer_norm(inputs.float(), module.normalized_shape, eps=module.eps).reshape(per_position)
            found["weight"] = _sum_copies((slopes * normal).sum(1), records)
        if "bias" in wanted:
            found["bias"] = _sum_copies(slopes.sum(1), records)
        return found


def _sum_copies(rows: Tensor, records: int) -> WrittenOut:
    """(records * copies, *shape) -> the sum over each record's copies."""
    return WrittenOut(rows if rows.shape[0] == records else rows.unflatten(0, (records, -1)).sum(1))
