"""Several layers of one shape as one stack: a norm or a sum of all of them is one operation.

A small UNet has dozens of layers of few shapes. Norm and weighted sum of one layer are about eight small operations; on
a GPU each is a kernel that takes longer to launch than to run. On a CPU copying large factors into a stack costs more
than it saves, so only small layers are stacked there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.privacy.engines.layers.contributions import Contribution, Materialized, OuterProducts, block_numbers
from ldm.privacy.engines.layers.squares import MOST_LAYERS, SquaredNorms, gram

#: A layer with more numbers in its factors is not stacked. Measured on a CPU: copying takes about 4 ns a number, since
#: the memory is fresh, and a stack saves about 0.1 ms a layer.
MOST_COPIED = {"cpu": 1 << 15}


def stack_size(numbers: int, positions: int, records: int, device: torch.device) -> int:
    """How many layers to stack, when each has ``numbers`` in its factors; 1 for layers too large to gain from it."""
    largest = block_numbers(device)
    if numbers > MOST_COPIED.get(device.type, largest):
        return 1
    return max(1, min(MOST_LAYERS, largest // max(1, numbers, records * positions**2)))


def stack_outer_products(parts: Sequence[OuterProducts], sharing: int) -> list[Contribution]:
    """One contribution of all ``parts``, or one each when their gradients are better written out.

    All parts are of one shape; each run of ``sharing`` parts has the same ``right``. The order of parameters is that of
    the parts.
    """
    first = parts[0]
    left = torch.cat([part.left for part in parts]).float()
    right = torch.cat([part.right for part in parts[::sharing]]).float()
    left = left.view(len(parts) // sharing, sharing, *first.left.shape)
    right = right.view(len(left), *first.right.shape)
    stack = StackedOuterProducts(left, right, first.weight, first.bias)
    return [stack] if first.is_factored() else stack.written_out()


@dataclass(frozen=True)
class StackedOuterProducts(Contribution):
    """m times k affine maps of one shape: ``left`` (m, k, B, T, p) output gradients, ``right`` (m, B, T, d) inputs.

    All are float32. k maps share an input, as the query, key and value layers of an attention do. ``weight`` and
    ``bias`` as in `OuterProducts`; parameters are in the order weight, bias of the first map, of the second, ...
    """

    left: Tensor
    right: Tensor
    weight: torch.Size | None
    bias: bool

    @property
    def records(self) -> int:
        return self.right.shape[1]

    def measure(self, norms: SquaredNorms) -> None:
        inputs = gram(self.right.flatten(0, 1)).unflatten(0, self.right.shape[:2])
        grads = gram(self.left.flatten(0, 2)).unflatten(0, self.left.shape[:3])
        # maps that share an input are one map of k times the width, whose Gram matrix is the sum of theirs
        grads = grads.sum(1) if grads.shape[1] > 1 else grads.squeeze(1)
        norms.add_stack(inputs, grads, self.bias, layers=self.left.shape[0] * self.left.shape[1])

    def weighted_sums(self, weights: Tensor) -> list[Tensor]:
        maps, sharing, _, positions, out_width = self.left.shape
        left, right, column = self.left, self.right, weights.view(-1, 1, 1)
        per_row = weights.repeat_interleave(positions)
        if sharing * out_width > right.shape[3]:  # scale the narrow factor
            right = right * column
            rows = per_row.expand(maps * sharing, 1, -1)
            biases = torch.bmm(rows, left.flatten(2, 3).flatten(0, 1)).squeeze(1) if self.bias else None
        else:
            left = left * column
            biases = left.flatten(2, 3).flatten(0, 1).sum(1) if self.bias else None
        products = [_products(left[:, index].flatten(1, 2), right.flatten(1, 2)) for index in range(sharing)]
        found: list[Tensor] = []
        for number in range(maps * sharing):
            found.append(products[number % sharing][number // sharing].view(self._shape()))
            if biases is not None:
                found.append(biases[number])
        return found

    def per_record(self) -> list[Tensor]:
        return [gradient for part in self.written_out() for gradient in part.per_record()]

    def written_out(self) -> list[Contribution]:
        """The gradients of each map by themselves, (B, *weight) and (B, p)."""
        maps, sharing, records = self.left.shape[:3]
        right = self.right.unsqueeze(1).expand(-1, sharing, -1, -1, -1).flatten(0, 2)
        weights = torch.bmm(self.left.flatten(0, 2).transpose(1, 2), right).view(
            maps * sharing, records, *self._shape()
        )
        gradients = [weights.unbind(0)]
        if self.bias:
            gradients.append(self.left.sum(3).flatten(0, 1).unbind(0))
        return [Materialized(own) for own in zip(*gradients, strict=True)]

    def select(self, index: Tensor) -> StackedOuterProducts:
        return StackedOuterProducts(self.left[:, :, index], self.right[:, index], self.weight, self.bias)

    def _shape(self) -> torch.Size:
        if self.weight is None:
            raise ValueError("maps of which only the bias is wanted are not stacked")
        return self.weight


def _products(left: Tensor, right: Tensor) -> Tensor:
    """(m, N, p) and (m, N, d) -> (m, p, d); the narrow factor first, as in `position_product`."""
    if left.shape[2] <= right.shape[2]:
        return torch.bmm(left.transpose(1, 2), right)
    return torch.bmm(right.transpose(1, 2), left).transpose(1, 2)
