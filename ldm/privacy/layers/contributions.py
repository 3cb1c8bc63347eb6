"""Per-record gradients of a layer's parameters, kept in whichever form makes norms and weighted sums cheap.

With a_t the input and g_t the output gradient of a linear map at position t, the weight gradient of record b is
``sum_t g_bt a_bt^T``. Written out it costs records x parameters of memory; kept as factors it costs positions x widths,
its squared norm is ``sum_tt' (a_t . a_t')(g_t . g_t')`` (Goodfellow 2015, arXiv 1510.01799; Li et al. 2021,
arXiv 2110.05679) and its weighted sum over records is one matrix product (Bu et al. 2022, arXiv 2210.00038). A bias is
a weight on a constant input of one, so it only adds one to every ``a_t . a_t'``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# An fp32 dot product is off by a few units in the last place of |x||y| (2 on average and 17 at most were measured). The
# factored norm sums such products with cancellation, so this multiple of (sum_t |a_t||g_t|)^2 is added to keep it an
# upper bound. On random data that overstates a norm over T positions by about T * 1.2e-7.
ROUNDING = 2.0**-22

# Factored norms are compute-bound (2 T^2 (d + p) operations), written-out gradients are memory-bound (d p numbers).
# This is the measured exchange rate between the two on x86 CPUs; current GPUs are within a factor of two of it.
OPERATIONS_PER_NUMBER = 32

_BLOCK_NUMBERS = 1 << 21  # temporaries of about 8 MB stay in the cache and out of the peak memory


class Contribution(ABC):
    """Gradients of one or more parameters of one layer, for each of ``records`` records, in fp32 whatever came in."""

    @property
    @abstractmethod
    def records(self) -> int:
        """Number of records B."""

    @abstractmethod
    def squared_norms(self) -> Tensor:
        """(B,) fp32: squared L2 norm of each record's gradient, an upper bound up to relative 1e-6."""

    @abstractmethod
    def weighted_sums(self, weights: Tensor) -> list[Tensor]:
        """Sum over records of weight (B,) times gradient, fp32: one tensor a parameter, in its shape."""

    @abstractmethod
    def per_record(self) -> list[Tensor]:
        """The gradients written out: (B, *parameter shape) fp32 for each parameter."""

    @abstractmethod
    def select(self, index: Tensor) -> Contribution:
        """The contribution of the records at ``index`` (n,) only."""

    def cheapest(self) -> Contribution:
        """This contribution, or its written-out form when that is less work."""
        return self

    def join(self, other: Contribution) -> Contribution:
        """The gradient when parameters are used twice in one forward pass: the sum of both contributions."""
        pairs = zip(self.per_record(), other.per_record(), strict=True)
        return WrittenOut([first + second for first, second in pairs])


@dataclass(frozen=True)
class WrittenOut(Contribution):
    """Gradients as they are: one tensor (B, *parameter shape) for each parameter."""

    gradients: Sequence[Tensor]

    @property
    def records(self) -> int:
        return self.gradients[0].shape[0]

    def squared_norms(self) -> Tensor:
        squares = [_row_squares(gradient) for gradient in self.gradients]
        return squares[0] if len(squares) == 1 else torch.stack(squares).sum(0)

    def weighted_sums(self, weights: Tensor) -> list[Tensor]:
        return [(weights @ gradient.flatten(1)).reshape(gradient.shape[1:]) for gradient in self.gradients]

    def per_record(self) -> list[Tensor]:
        return list(self.gradients)

    def select(self, index: Tensor) -> WrittenOut:
        return WrittenOut([gradient[index] for gradient in self.gradients])


@dataclass(frozen=True)
class OuterProducts(Contribution):
    """An affine map of positions: ``left`` (B, T, p) output gradients, ``right`` (B, T, d) inputs.

    The factors may be of any float dtype and memory layout. ``weight`` is the shape of the weight (p, d, ...), None
    when only the bias is wanted; ``bias`` says whether the bias (p,) is. Parameters come in the order weight, bias.
    """

    left: Tensor
    right: Tensor
    weight: torch.Size | None
    bias: bool

    @property
    def records(self) -> int:
        return self.left.shape[0]

    def squared_norms(self) -> Tensor:
        if self.weight is None:
            return _row_squares(self._bias())
        if self.left.shape[1] == 1:
            return _row_squares(self.left[:, 0]) * (_row_squares(self.right[:, 0]) + float(self.bias))
        size = block_records(self.left.shape[1] ** 2)
        if size >= self.records:
            return self._factored(self.left.float(), self.right.float())
        blocks = zip(self.left.split(size), self.right.split(size), strict=True)
        return torch.cat([self._factored(left.float(), right.float()) for left, right in blocks])

    def weighted_sums(self, weights: Tensor) -> list[Tensor]:
        column, left, right = weights.view(-1, 1, 1), self.left.float(), self.right.float()
        if self.weight is None:
            return [weights @ self._bias()]
        if left.shape[2] > right.shape[2]:  # scale the narrow factor
            product = position_product(left, right * column).reshape(self.weight)
            return [product, weights @ self._bias()] if self.bias else [product]
        left = left * column
        product = position_product(left, right).reshape(self.weight)
        return [product, left.sum((0, 1))] if self.bias else [product]

    def per_record(self) -> list[Tensor]:
        gradients = []
        if self.weight is not None:
            products = torch.bmm(self.left.float().transpose(1, 2), self.right.float())
            gradients.append(products.reshape(self.records, *self.weight))
        if self.bias:
            gradients.append(self._bias())
        return gradients

    def select(self, index: Tensor) -> OuterProducts:
        return OuterProducts(self.left[index], self.right[index], self.weight, self.bias)

    def cheapest(self) -> Contribution:
        positions, (out_width, in_width) = self.left.shape[1], (self.left.shape[2], self.right.shape[2])
        factored = positions**2 * (in_width + out_width)
        fits = positions == 1 or factored <= OPERATIONS_PER_NUMBER * in_width * out_width
        return self if fits and self.weight is not None else WrittenOut(self.per_record())

    def join(self, other: Contribution) -> Contribution:
        if not isinstance(other, OuterProducts):
            return super().join(other)
        left, right = torch.cat([self.left, other.left], 1), torch.cat([self.right, other.right], 1)
        return OuterProducts(left, right, self.weight, self.bias)

    def _bias(self) -> Tensor:
        return self.left.float().sum(1)

    def _factored(self, left: Tensor, right: Tensor) -> Tensor:
        inputs = gram(right)
        return factored_squares(inputs.add_(1.0) if self.bias else inputs, gram(left))


@dataclass(frozen=True)
class TableRows(Contribution):
    """Gradients of a lookup table: ``rows`` (B, T) int64 indices, ``values`` (B, T, d) gradients of what was looked up.

    Positions at ``padding`` contribute nothing, as in ``nn.Embedding``.
    """

    rows: Tensor
    values: Tensor
    shape: torch.Size
    padding: int | None = None

    @property
    def records(self) -> int:
        return self.rows.shape[0]

    def squared_norms(self) -> Tensor:
        values = self._values()
        if self.rows.shape[1] == 1:
            return _row_squares(values[:, 0])
        same = self.rows.unsqueeze(1) == self.rows.unsqueeze(2)
        return factored_squares(gram(values), same.float())

    def weighted_sums(self, weights: Tensor) -> list[Tensor]:
        values = self._values() * weights[:, None, None]
        return [values.new_zeros(self.shape).index_add_(0, self.rows.flatten(), values.flatten(0, 1))]

    def per_record(self) -> list[Tensor]:
        values = self._values()
        table = values.new_zeros(self.records * self.shape[0], self.shape[1])
        offsets = torch.arange(self.records, device=self.rows.device)[:, None] * self.shape[0]
        table.index_add_(0, (self.rows + offsets).flatten(), values.flatten(0, 1))
        return [table.reshape(self.records, *self.shape)]

    def select(self, index: Tensor) -> TableRows:
        return TableRows(self.rows[index], self.values[index], self.shape, self.padding)

    def join(self, other: Contribution) -> Contribution:
        if not isinstance(other, TableRows) or other.padding != self.padding:
            return super().join(other)
        rows, values = torch.cat([self.rows, other.rows], 1), torch.cat([self.values, other.values], 1)
        return TableRows(rows, values, self.shape, self.padding)

    def _values(self) -> Tensor:
        values = self.values.float()
        if self.padding is None:
            return values
        return values.masked_fill((self.rows == self.padding).unsqueeze(2), 0.0)


def gram(vectors: Tensor) -> Tensor:
    """Dot products of all pairs of positions: (B, T, d) fp32 -> (B, T, T)."""
    return torch.bmm(vectors, vectors.transpose(1, 2))


def factored_squares(first: Tensor, second: Tensor) -> Tensor:
    """(B,) sums of the elementwise product of two Gram matrices (B, T, T), raised by their possible rounding error.

    ``first`` is overwritten. A record with a non-finite entry gives a non-finite result.
    """
    products = first.mul_(second)
    lengths = products.diagonal(dim1=1, dim2=2).sqrt().sum(1)  # sum_t |a_t||g_t|
    return products.flatten(1).sum(1).clamp_min_(0.0).addcmul_(lengths, lengths, value=ROUNDING)


def position_product(left: Tensor, right: Tensor) -> Tensor:
    """Sum over records and positions of outer products of fp32 factors: (B, T, p) and (B, T, d) -> (p, d)."""
    positions, out_width, in_width = left.shape[1], left.shape[2], right.shape[2]
    if left.device.type == "cpu" and positions > 8 and not left.is_contiguous():
        # Channels-first activations: products of each record where they lie beat copying them into long rows.
        total = left.new_zeros(out_width, in_width)
        if out_width * in_width > 2 * positions * (out_width + in_width):
            return total.addbmm_(left.transpose(1, 2), right)
        size = block_records(out_width * in_width)
        for some_left, some_right in zip(left.split(size), right.split(size), strict=True):
            total += torch.bmm(some_left.transpose(1, 2), some_right).sum(0)
        return total
    return left.flatten(0, 1).t() @ right.flatten(0, 1)


def block_records(numbers: int) -> int:
    """How many records to process at once when each needs ``numbers`` temporary fp32 numbers."""
    return max(1, _BLOCK_NUMBERS // max(1, numbers))


def fold_copies(tensor: Tensor, records: int) -> Tensor:
    """(records * copies, T, d) -> (records, copies * T, d): a record's copies become further positions of it."""
    rows, positions, width = tensor.shape
    return tensor if rows == records else tensor.reshape(records, rows // records * positions, width)


def _row_squares(gradients: Tensor) -> Tensor:
    """Squared norm of each (B, ...) entry; in two stages, as one long fp32 sum of squares would lose digits."""
    if gradients.dim() == 2:
        return torch.linalg.vector_norm(gradients.float(), dim=1).square_()
    return torch.linalg.vector_norm(gradients.float().flatten(2), dim=2).square_().sum(1)
