"""Linear layers with any number of position axes, none included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from ldm.privacy.engines.layers.contributions import Contribution, OuterProducts, fold_copies
from ldm.privacy.engines.layers.rule import LayerRule


class LinearRule(LayerRule):
    """``nn.Linear``: inputs (R, ..., d), output gradients (R, ..., p)."""

    kinds = (nn.Linear,)

    def gradient_layout(self, grad: Tensor) -> Tensor:
        return grad.contiguous()

    def contribution(
        self, module: nn.Module, inputs: Tensor, grad: Tensor, records: int, wanted: Sequence[str]
    ) -> Contribution:
        inputs, grad = fold_copies(_one_position_axis(inputs), records), fold_copies(_one_position_axis(grad), records)
        return outer_products(cast(nn.Linear, module).weight, inputs, grad, wanted)


def outer_products(weight: Tensor, inputs: Tensor, grad: Tensor, wanted: Sequence[str]) -> Contribution:
    """Weight and bias of a layer that maps positions independently: inputs (B, T, d), output gradients (B, T, p)."""
    return OuterProducts(grad, inputs, weight.shape if "weight" in wanted else None, "bias" in wanted)


def _one_position_axis(tensor: Tensor) -> Tensor:
    if tensor.dim() == 3:
        return tensor
    return tensor.unsqueeze(1) if tensor.dim() == 2 else tensor.flatten(1, -2)
