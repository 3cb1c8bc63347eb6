"""Convolutions over one or two axes, with every option of the plain layers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.privacy.engines.layers.contributions import Contribution, fold_copies
from ldm.privacy.engines.layers.linear import alike_outer_products, outer_products
from ldm.privacy.engines.layers.patches import ConvGradient, ConvStack, Kernel
from ldm.privacy.engines.layers.rule import LayerRule
from ldm.privacy.engines.layers.squares import FEW_POSITIONS
from ldm.privacy.engines.layers.stacked import stack_outer_products, stack_size


class ConvRule(LayerRule):
    """``nn.Conv1d`` and ``nn.Conv2d``: inputs (R, d, W) or (R, d, H, W) in any memory layout."""

    kinds = (nn.Conv1d, nn.Conv2d)
    methods = ("forward", "_conv_forward")

    def contribution(
        self, module: nn.Module, inputs: Tensor, grad: Tensor, records: int, wanted: Sequence[str]
    ) -> Contribution:
        module = cast(nn.Conv1d | nn.Conv2d, module)
        if _is_pointwise(module) or "weight" not in wanted:
            return outer_products(module.weight, _pixels(inputs, records), _pixels(grad, records), wanted)
        inputs, kernel = _as_image_kernel(module, inputs)
        grad_outputs = grad.unsqueeze(2) if grad.dim() == 3 else grad
        return ConvGradient(inputs, grad_outputs, len(inputs) // records, kernel, module.weight.shape, "bias" in wanted)

    def alike(
        self, module: nn.Module, inputs: Tensor, grad: Tensor, records: int, wanted: Sequence[str]
    ) -> tuple[Hashable, int] | None:
        layer = cast(nn.Conv1d | nn.Conv2d, module)
        if _is_pointwise(layer):
            return alike_outer_products(inputs, grad, inputs[0, 0].numel() * len(inputs) // records, records, wanted)
        if "weight" not in wanted:
            return None
        copies = len(inputs) // records
        steps = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode)
        key = (inputs.shape, grad.shape, inputs.dtype, grad.dtype, tuple(wanted), steps)
        positions = copies * max(inputs[0, 0].numel(), grad[0, 0].numel())
        return key, stack_size(inputs.numel() + grad.numel(), positions, records * layer.groups, grad.device)

    def together(
        self, uses: Sequence[tuple[nn.Module, Tensor, Tensor]], records: int, wanted: Sequence[str], sharing: int
    ) -> Sequence[Contribution]:
        if _is_pointwise(cast(nn.Conv1d | nn.Conv2d, uses[0][0])):
            parts = [
                outer_products(
                    cast(nn.Conv1d | nn.Conv2d, module).weight,
                    _pixels(inputs, records, copied=False),
                    _pixels(grad, records, copied=False),
                    wanted,
                )
                for module, inputs, grad in uses
            ]
            return stack_outer_products(parts, sharing)
        kernels = [cast(ConvGradient, self.contribution(*use, records, wanted)) for use in uses]
        return [ConvStack.of(kernels)] if kernels[0].is_factored() else kernels


def _pixels(tensor: Tensor, records: int, copied: bool = True) -> Tensor:
    """(R, channels, ...) -> (B, multiplicity * pixels, channels), ``copied`` into that order if pixels are few."""
    pixels = tensor.flatten(2).transpose(1, 2)
    return fold_copies(pixels.contiguous() if copied and pixels.shape[1] <= FEW_POSITIONS else pixels, records)


def _is_pointwise(module: nn.Conv1d | nn.Conv2d) -> bool:
    """Whether the layer maps every pixel on its own; padding would add positions."""
    unit = all(size == 1 for size in (*module.kernel_size, *module.stride)) and module.groups == 1
    return unit and all(size == 0 for pair in _paddings(module) for size in pair)


def _paddings(module: nn.Conv1d | nn.Conv2d) -> list[tuple[int, int]]:
    """Padding before and after, per spatial axis."""
    if module.padding == "valid":
        return [(0, 0)] * len(module.kernel_size)
    if module.padding == "same":
        totals = [dilation * (size - 1) for size, dilation in zip(module.kernel_size, module.dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(int(size), int(size)) for size in module.padding]


def _as_image_kernel(module: nn.Conv1d | nn.Conv2d, inputs: Tensor) -> tuple[Tensor, Kernel]:
    """The same convolution over two axes with symmetric zero padding; other padding is written into the input."""
    paddings = _paddings(module)
    if module.padding_mode != "zeros" or any(before != after for before, after in paddings):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        inputs = F.pad(inputs, [size for pair in reversed(paddings) for size in pair], mode=mode)
        paddings = [(0, 0)] * len(paddings)
    stride, dilation, padding = list(module.stride), list(module.dilation), [before for before, _ in paddings]
    shape = list(module.weight.shape)
    if len(stride) == 1:
        inputs = inputs.unsqueeze(2)
        stride, dilation, padding = [1, *stride], [1, *dilation], [0, *padding]
        shape = [*shape[:2], 1, shape[2]]
    return inputs, Kernel(
        torch.Size(shape), (stride[0], stride[1]), (padding[0], padding[1]), (dilation[0], dilation[1]), module.groups
    )
