"""Linear layers with any number of position axes, none included."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from ldm.privacy.layers.contributions import Contribution, OuterProducts, WrittenOut, fold_copies
from ldm.privacy.layers.rule import LayerRule


class LinearRule(LayerRule):
    """``nn.Linear``: inputs (R, ..., d), output gradients (R, ..., p)."""

    def contributions(
        self, module: nn.Module, inputs: Tensor, grad: Tensor, records: int, wanted: Collection[str]
    ) -> dict[str, Contribution]:
        return outer_contributions(
            module,
            fold_copies(_one_position_axis(inputs), records),
            fold_copies(_one_position_axis(grad), records),
            wanted,
        )


def outer_contributions(
    module: nn.Module, inputs: Tensor, grad: Tensor, wanted: Collection[str]
) -> dict[str, Contribution]:
    """Weight and bias of a layer that maps positions independently: inputs (B, T, d), output gradients (B, T, p)."""
    found: dict[str, Contribution] = {}
    if "weight" in wanted:
        found["weight"] = OuterProducts(grad, inputs, module.get_parameter("weight").shape)
    if "bias" in wanted:
        found["bias"] = WrittenOut(grad.float().sum(1))
    return found


def _one_position_axis(tensor: Tensor) -> Tensor:
    return tensor.unsqueeze(1) if tensor.dim() == 2 else tensor.flatten(1, -2)
