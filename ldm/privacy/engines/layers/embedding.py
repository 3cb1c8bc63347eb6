"""Lookup tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from ldm.privacy.engines.layers.contributions import Contribution, EmbeddingGradient
from ldm.privacy.engines.layers.rule import LayerRule


class EmbeddingRule(LayerRule):
    """``nn.Embedding``: integer inputs (R, ...), output gradients (R, ..., d)."""

    kinds = (nn.Embedding,)
    names = frozenset({"weight"})

    def refusal(self, module: nn.Module) -> str | None:
        module = cast(nn.Embedding, module)
        if module.max_norm is not None:
            return "max_norm rescales the table by which rows the private batch looks up; build it without max_norm"
        if module.scale_grad_by_freq:
            return "scale_grad_by_freq mixes the records of a batch; build it without scale_grad_by_freq"
        if module.sparse:
            return "sparse gradients are not needed here; build it with sparse=False"
        return None

    def contribution(
        self, module: nn.Module, inputs: Tensor, grad: Tensor, records: int, wanted: Sequence[str]
    ) -> Contribution:
        module = cast(nn.Embedding, module)
        rows, values = inputs.reshape(records, -1), grad.reshape(records, -1, grad.shape[-1])
        return EmbeddingGradient(rows, values, module.weight.shape, module.padding_idx)
