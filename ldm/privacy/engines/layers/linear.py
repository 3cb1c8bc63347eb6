"""Linear layers with any number of position axes, none included."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import cast

from torch import Tensor, nn

from ldm.privacy.engines.layers.contributions import Contribution, OuterProducts, fold_copies
from ldm.privacy.engines.layers.rule import LayerRule
from ldm.privacy.engines.layers.stacked import stack_outer_products, stack_size


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

    def alike(
        self, module: nn.Module, inputs: Tensor, grad: Tensor, records: int, wanted: Sequence[str]
    ) -> tuple[Hashable, int] | None:
        return alike_outer_products(inputs, grad, inputs.shape[1:-1].numel() * len(inputs) // records, records, wanted)

    def together(
        self, uses: Sequence[tuple[nn.Module, Tensor, Tensor]], records: int, wanted: Sequence[str], sharing: int
    ) -> Sequence[Contribution]:
        parts = [cast(OuterProducts, self.contribution(*use, records, wanted)) for use in uses]
        return stack_outer_products(parts, sharing)


def alike_outer_products(
    inputs: Tensor, grad: Tensor, positions: int, records: int, wanted: Sequence[str]
) -> tuple[Hashable, int] | None:
    """The answer of `LayerRule.alike` for a layer that maps ``positions`` positions of a record independently."""
    if "weight" not in wanted:
        return None
    key = (inputs.shape, grad.shape, inputs.dtype, grad.dtype, tuple(wanted))
    return key, stack_size(inputs.numel() + grad.numel(), positions, records, grad.device)


def outer_products(weight: Tensor, inputs: Tensor, grad: Tensor, wanted: Sequence[str]) -> OuterProducts:
    """Weight and bias of a layer that maps positions independently: inputs (B, T, d), output gradients (B, T, p)."""
    return OuterProducts(grad, inputs, weight.shape if "weight" in wanted else None, "bias" in wanted)


def _one_position_axis(tensor: Tensor) -> Tensor:
    if tensor.dim() == 3:
        return tensor
    return tensor.unsqueeze(1) if tensor.dim() == 2 else tensor.flatten(1, -2)
