"""Group and layer normalisation: scale and shift are small, so their per-record gradients are materialized."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.privacy.engines.layers.contributions import Contribution, Materialized
from ldm.privacy.engines.layers.rule import LayerRule
from ldm.privacy.engines.layers.stacked import stack_size


class _NormRule(LayerRule):
    """The part that both kinds share: gradients of every row, and layers of one shape computed as one."""

    @abstractmethod
    def _rows(self, module: nn.Module, inputs: Tensor, grad: Tensor, wanted: Sequence[str]) -> list[Tensor]:
        """The gradient (R, *shape) of every row, for each of the ``wanted`` parameters."""

    @abstractmethod
    def _options(self, module: nn.Module) -> Hashable:
        """The settings that two layers must share to be computed as one."""

    def contribution(
        self, module: nn.Module, inputs: Tensor, grad: Tensor, records: int, wanted: Sequence[str]
    ) -> Contribution:
        return _sum_copies(self._rows(module, inputs, grad, wanted), records)

    def alike(
        self, module: nn.Module, inputs: Tensor, grad: Tensor, records: int, wanted: Sequence[str]
    ) -> tuple[Hashable, int] | None:
        key = (inputs.shape, grad.shape, inputs.dtype, grad.dtype, self._options(module), tuple(wanted))
        return key, stack_size(inputs.numel() + grad.numel(), 1, len(inputs), grad.device)

    def together(
        self, uses: Sequence[tuple[nn.Module, Tensor, Tensor]], records: int, wanted: Sequence[str], sharing: int
    ) -> Sequence[Contribution]:
        return _apart(self._rows(*_as_one(uses), wanted), len(uses), records)


class GroupNormRule(_NormRule):
    """``nn.GroupNorm``: inputs (R, C, ...)."""

    kinds = (nn.GroupNorm,)

    def _options(self, module: nn.Module) -> Hashable:
        module = cast(nn.GroupNorm, module)
        return (module.num_groups, module.eps)

    def _rows(self, module: nn.Module, inputs: Tensor, grad: Tensor, wanted: Sequence[str]) -> list[Tensor]:
        module = cast(nn.GroupNorm, module)
        per_channel = (grad.shape[0], grad.shape[1], -1)
        grad_outputs = grad.float().reshape(per_channel)
        rows = []
        if "weight" in wanted:
            normal = F.group_norm(inputs.float(), module.num_groups, eps=module.eps).reshape(per_channel)
            rows.append(_total_last(normal.mul_(grad_outputs)))
        if "bias" in wanted:
            rows.append(_total_last(grad_outputs))
        return rows


class LayerNormRule(_NormRule):
    """``nn.LayerNorm`` over any trailing shape: inputs (R, ..., *normalized_shape)."""

    kinds = (nn.LayerNorm,)

    def gradient_layout(self, grad: Tensor) -> Tensor:
        return grad.contiguous()

    def _options(self, module: nn.Module) -> Hashable:
        module = cast(nn.LayerNorm, module)
        return (module.normalized_shape, module.eps)

    def _rows(self, module: nn.Module, inputs: Tensor, grad: Tensor, wanted: Sequence[str]) -> list[Tensor]:
        module = cast(nn.LayerNorm, module)
        per_position = (grad.shape[0], -1, *module.normalized_shape)
        grad_outputs = grad.float().reshape(per_position)
        rows = []
        if "weight" in wanted:
            normal = F.layer_norm(inputs.float(), module.normalized_shape, eps=module.eps).reshape(per_position)
            rows.append(normal.mul_(grad_outputs).sum(1))
        if "bias" in wanted:
            rows.append(grad_outputs.sum(1))
        return rows


def _as_one(uses: Sequence[tuple[nn.Module, Tensor, Tensor]]) -> tuple[nn.Module, Tensor, Tensor]:
    """The uses of n layers as one use of the first, on n times as many rows; scale and shift have no part in it."""
    return uses[0][0], torch.cat([inputs for _, inputs, _ in uses]), torch.cat([grad for *_, grad in uses])


def _apart(rows: Sequence[Tensor], layers: int, records: int) -> list[Contribution]:
    """The rows of ``layers`` layers, one layer after the other -> the contribution of each."""
    whole = _sum_copies(rows, layers * records)
    parts = [gradient.unflatten(0, (layers, records)).unbind(0) for gradient in whole.gradients]
    return [Materialized(own) for own in zip(*parts, strict=True)]


def _total_last(values: Tensor) -> Tensor:
    """Sums over the last axis, as a matrix product, since torch's sum is slow where that axis is short."""
    return values @ values.new_ones(values.shape[-1])


def _sum_copies(rows: Sequence[Tensor], records: int) -> Materialized:
    """Each (records * multiplicity, *shape) -> its sum over each record's noise draws."""
    return Materialized([row if len(row) == records else row.unflatten(0, (records, -1)).sum(1) for row in rows])
