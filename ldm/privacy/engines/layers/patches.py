"""Per-record gradients of convolution kernels, without unfolding the input for factored norms.

The Gram matrix of the patches a convolution sees is a sum of shifted copies of the Gram matrix of the *pixels*, and the
shifts separate into rows and columns. So the factored norm of a k x k kernel costs little more than that of a 1 x 1
kernel, and the weighted sum is one ordinary convolution weight gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_weight

from ldm.privacy.engines.layers.contributions import OPERATIONS_PER_NUMBER, Contribution, Materialized, block_records
from ldm.privacy.engines.layers.squares import SquaredNorms, factored_squares, gram


@dataclass(frozen=True)
class Kernel:
    """Shape and stepping of a 2-D convolution; ``padding`` is symmetric and filled with zeros."""

    shape: torch.Size  # (p, d / groups, k_h, k_w)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1


@dataclass(frozen=True)
class ConvGradient(Contribution):
    """Kernel gradients of ``inputs`` (B * K, d, H, W) and ``grad_outputs`` (B * K, p, h, w), K noise draws a record.

    ``weight`` is the shape of the parameter, which has one axis fewer than ``kernel.shape`` for a 1-D convolution.
    ``bias`` says whether the bias is wanted too.
    """

    inputs: Tensor
    grad_outputs: Tensor
    multiplicity: int
    kernel: Kernel
    weight: torch.Size
    bias: bool

    @property
    def records(self) -> int:
        return self.inputs.shape[0] // self.multiplicity

    def measure(self, norms: SquaredNorms) -> None:
        norms.add(self.factored_squares())

    def factored_squares(self) -> Tensor:
        """(B,) squared norms, from Gram matrices."""
        numbers = self.kernel.groups * (self.multiplicity * self.inputs.shape[2] * self.inputs.shape[3]) ** 2
        size = self.multiplicity * block_records(numbers, self.inputs.device)
        blocks = zip(self.inputs.split(size), self.grad_outputs.split(size), strict=True)
        return torch.cat([self._squares(inputs.float(), grad_outputs.float()) for inputs, grad_outputs in blocks])

    def weighted_sums(self, weights: Tensor) -> list[Tensor]:
        grad_outputs = self.grad_outputs.float() * weights.repeat_interleave(self.multiplicity).view(-1, 1, 1, 1)
        product = _kernel_gradient(self.inputs.float(), grad_outputs, self.kernel).reshape(self.weight)
        return [product, grad_outputs.sum((0, 2, 3))] if self.bias else [product]

    def per_record(self) -> list[Tensor]:
        write_out = by_groups if self.inputs.device.type == "cpu" else by_unfolding
        gradients = [
            write_out(self.inputs, self.grad_outputs, self.multiplicity, self.kernel).reshape(
                self.records, *self.weight
            )
        ]
        if self.bias:
            gradients.append(self.grad_outputs.float().sum((2, 3)).unflatten(0, (self.records, -1)).sum(1))
        return gradients

    def select(self, index: Tensor) -> ConvGradient:
        rows = _rows_of(index, self.multiplicity)
        return ConvGradient(
            self.inputs[rows], self.grad_outputs[rows], self.multiplicity, self.kernel, self.weight, self.bias
        )

    def choose_form(self) -> Contribution:
        return self if self.is_factored() else Materialized(self.per_record())

    def is_factored(self) -> bool:
        """Whether factors are less work than materialized gradients."""
        pixels = self.multiplicity * self.inputs[0, 0].numel()
        positions = self.multiplicity * self.grad_outputs[0, 0].numel()
        factored = pixels**2 * self.inputs.shape[1] + positions**2 * self.grad_outputs.shape[1]
        return factored <= OPERATIONS_PER_NUMBER * (
            self.kernel.shape.numel() + self._unfolded_numbers() * self.multiplicity
        )

    def _unfolded_numbers(self) -> int:
        """Numbers in the unfolded input of one row."""
        _, width, height, breadth = self.kernel.shape
        return width * self.kernel.groups * height * breadth * self.grad_outputs[0, 0].numel()

    def _squares(self, inputs: Tensor, grad_outputs: Tensor) -> Tensor:
        pixels = gram(_positions_last(inputs, self.multiplicity, self.kernel.groups).transpose(1, 2))
        sizes = (self.multiplicity, *inputs.shape[2:])
        patches = self._patch_gram(pixels.unflatten(2, sizes).unflatten(1, sizes))
        positions = gram(_positions_last(grad_outputs, self.multiplicity, self.kernel.groups).transpose(1, 2))
        return factored_squares(patches, positions, self.bias).unflatten(0, (-1, self.kernel.groups)).sum(1)

    def _patch_gram(self, pixels: Tensor) -> Tensor:
        """Dot products of pixels (n, K, H, W, K, H, W) -> dot products of patches (n, K*h*w, K*h*w)."""
        for axis in (0, 1):
            pixels = self._sum_shifts(pixels, axis)
        return pixels.flatten(4).flatten(1, 3)

    def _sum_shifts(self, pixels: Tensor, axis: int) -> Tensor:
        kernel = self.kernel
        stride, padding, dilation = kernel.stride[axis], kernel.padding[axis], kernel.dilation[axis]
        before, after = pixels.shape[2 + axis], self.grad_outputs.shape[2 + axis]
        if kernel.shape[2 + axis] == 1 and stride == 1 and padding == 0:
            return pixels
        sizes = list(pixels.shape)
        sizes[2 + axis] = sizes[5 + axis] = after
        total = pixels.new_zeros(sizes)
        for tap in range(kernel.shape[2 + axis]):
            offset = tap * dilation - padding
            first = max(0, -(offset // stride))  # the first output whose tap falls inside the image
            count = min(after, (before - 1 - offset) // stride + 1) - first
            if count <= 0:
                continue
            seen = slice(first * stride + offset, (first + count - 1) * stride + offset + 1, stride)
            where = slice(first, first + count)
            if axis == 0:
                total[:, :, where, :, :, where] += pixels[:, :, seen, :, :, seen]
            else:
                total[:, :, :, where, :, :, where] += pixels[:, :, :, seen, :, :, seen]
        return total


@dataclass(frozen=True)
class ConvStack(Contribution):
    """Kernel gradients of n convolutions of one shape that are measured together.

    ``inputs`` are those of each, ``grad_outputs`` (n * B * K, p, h, w) of all, one convolution after the other.
    ``first`` is the first of them. The order of the parameters is weight, bias of the first, of the second, ...
    """

    first: ConvGradient
    inputs: Sequence[Tensor]
    grad_outputs: Tensor

    @classmethod
    def of(cls, parts: Sequence[ConvGradient]) -> ConvStack:
        """The stack of parts of one shape."""
        return cls(parts[0], [part.inputs for part in parts], torch.cat([part.grad_outputs for part in parts]).float())

    @property
    def records(self) -> int:
        return self.first.records

    def measure(self, norms: SquaredNorms) -> None:
        whole = replace(self.first, inputs=torch.cat(list(self.inputs)), grad_outputs=self.grad_outputs)
        for squares in whole.factored_squares().unflatten(0, (len(self.inputs), -1)).unbind(0):
            norms.add(squares)

    def weighted_sums(self, weights: Tensor) -> list[Tensor]:
        first, layers = self.first, len(self.inputs)
        column = weights.repeat_interleave(first.multiplicity).view(-1, 1, 1, 1)
        grads = self.grad_outputs.unflatten(0, (layers, -1)) * column
        biases = grads.sum((1, 3, 4)) if first.bias else None
        found = []
        for layer, inputs in enumerate(self.inputs):
            found.append(_kernel_gradient(inputs.float(), grads[layer], first.kernel).reshape(first.weight))
            if biases is not None:
                found.append(biases[layer])
        return found

    def per_record(self) -> list[Tensor]:
        pairs = zip(self.inputs, self.grad_outputs.chunk(len(self.inputs)), strict=True)
        parts = [replace(self.first, inputs=inputs, grad_outputs=grads) for inputs, grads in pairs]
        return [gradient for part in parts for gradient in part.per_record()]

    def select(self, index: Tensor) -> ConvStack:
        rows = _rows_of(index, self.first.multiplicity)
        grads = self.grad_outputs.unflatten(0, (len(self.inputs), -1))[:, rows].flatten(0, 1)
        inputs = [inputs[rows] for inputs in self.inputs]
        first = replace(self.first, inputs=inputs[0], grad_outputs=grads[: len(rows)])
        return ConvStack(first, inputs, grads)


def by_groups(inputs: Tensor, grad_outputs: Tensor, multiplicity: int, kernel: Kernel) -> Tensor:
    """Kernel gradients (B, *kernel.shape) by one convolution: records are its groups, noise draws its batch."""
    records = inputs.shape[0] // multiplicity
    inputs, grad_outputs = (
        tensor.float().unflatten(0, (records, multiplicity)).transpose(0, 1).flatten(1, 2)
        for tensor in (inputs, grad_outputs)
    )
    shape = torch.Size((records * kernel.shape[0], *kernel.shape[1:]))
    stacked = replace(kernel, shape=shape, groups=records * kernel.groups)
    return _kernel_gradient(inputs, grad_outputs, stacked).unflatten(0, (records, kernel.shape[0]))


def by_unfolding(inputs: Tensor, grad_outputs: Tensor, multiplicity: int, kernel: Kernel) -> Tensor:
    """The same as :func:`by_groups` by one matrix product a record, which GPUs do faster; the input is unfolded."""
    width, height, breadth = kernel.shape[1:]
    numbers = width * kernel.groups * height * breadth * grad_outputs[0, 0].numel() * multiplicity
    size = multiplicity * block_records(numbers, inputs.device)
    written = []
    for some_inputs, some_slopes in zip(inputs.split(size), grad_outputs.split(size), strict=True):
        patches = F.unfold(some_inputs.float(), (height, breadth), kernel.dilation, kernel.padding, kernel.stride)
        first = _positions_last(some_slopes.float(), multiplicity, kernel.groups)
        second = _positions_last(patches, multiplicity, kernel.groups)
        written.append(torch.bmm(first, second.transpose(1, 2)))
    return torch.cat(written).reshape(-1, *kernel.shape)


def _kernel_gradient(inputs: Tensor, grad_outputs: Tensor, kernel: Kernel) -> Tensor:
    return conv2d_weight(
        inputs.contiguous(),
        kernel.shape,
        grad_outputs.contiguous(),
        kernel.stride,
        kernel.padding,
        kernel.dilation,
        kernel.groups,
    )


def _rows_of(records: Tensor, multiplicity: int) -> Tensor:
    """The rows of the records at these places."""
    return (records[:, None] * multiplicity + torch.arange(multiplicity, device=records.device)).flatten()


def _positions_last(tensor: Tensor, multiplicity: int, groups: int) -> Tensor:
    """(b * multiplicity, channels, ...) -> (b * groups, channels / groups, multiplicity * positions)."""
    rows, channels = tensor.shape[:2]
    if multiplicity == 1:
        return tensor.reshape(rows * groups, channels // groups, -1)
    split = tensor.reshape(rows // multiplicity, multiplicity, groups, channels // groups, -1)
    return split.permute(0, 2, 3, 1, 4).reshape(rows // multiplicity * groups, channels // groups, -1)
