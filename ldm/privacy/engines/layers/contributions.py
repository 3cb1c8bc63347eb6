"""Per-record gradients of a layer's parameters, in the form with the cheapest norms and weighted sums.

With a_t the input and g_t the output gradient of a linear map at position t, the weight gradient of record b is
``sum_t g_bt a_bt^T``. Materialized, it costs records x parameters of memory; kept as factors, it costs positions x
widths, its squared norm is ``sum_tt' (a_t . a_t')(g_t . g_t')`` (Goodfellow 2015, arXiv 1510.01799; Li et al. 2021,
arXiv 2110.05679) and its weighted sum over records is one matrix product (Bu et al. 2022, arXiv 2210.00038). A bias is
a weight on a constant input of one, so it only adds one to every ``a_t . a_t'``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.privacy.engines.layers.squares import FEW_POSITIONS, SquaredNorms, factored_squares, gram, row_squares

# Factored norms are compute-bound (2 T^2 (d + p) operations), materialized gradients are memory-bound (d p numbers).
# This is the measured exchange rate between the two on x86 CPUs; current GPUs are within a factor of two of it.
OPERATIONS_PER_NUMBER = 32

#: Temporary numbers at once: 8 MB stay in a CPU's cache and out of the peak memory; a GPU wants few, large kernels.
_BLOCK_NUMBERS = {"cpu": 1 << 21, "cuda": 1 << 26}


class Contribution(ABC):
    """Gradients of one or more parameters of one layer, for each of ``records`` records, always in fp32."""

    @property
    @abstractmethod
    def records(self) -> int:
        """Number of records B."""

    @abstractmethod
    def measure(self, norms: SquaredNorms) -> None:
        """Add the squared L2 norm of each record's gradient to ``norms``."""

    def squared_norms(self) -> Tensor:
        """(B,) fp32: squared L2 norm of each record's gradient, an upper bound up to relative 1e-6."""
        norms = SquaredNorms()
        self.measure(norms)
        return norms.total()

    @abstractmethod
    def weighted_sums(self, weights: Tensor) -> list[Tensor]:
        """Sum over records of weight (B,) times gradient, fp32: one tensor a parameter, in its shape."""

    @abstractmethod
    def per_record(self) -> list[Tensor]:
        """The materialized gradients: (B, *parameter shape) fp32 for each parameter."""

    @abstractmethod
    def select(self, index: Tensor) -> Contribution:
        """The contribution of the records at ``index`` (n,) only."""

    def choose_form(self) -> Contribution:
        """This contribution, or its materialized form when that is less work."""
        return self

    def join(self, other: Contribution) -> Contribution:
        """The gradient when parameters are used twice in one forward pass: the sum of both contributions."""
        pairs = zip(self.per_record(), other.per_record(), strict=True)
        return Materialized([first + second for first, second in pairs])


@dataclass(frozen=True)
class Materialized(Contribution):
    """Materialized gradients: one tensor (B, *parameter shape) for each parameter."""

    gradients: Sequence[Tensor]

    @property
    def records(self) -> int:
        return self.gradients[0].shape[0]

    def measure(self, norms: SquaredNorms) -> None:
        for gradient in self.gradients:
            norms.add(row_squares(gradient))

    def weighted_sums(self, weights: Tensor) -> list[Tensor]:
        return [(weights @ gradient.flatten(1)).reshape(gradient.shape[1:]) for gradient in self.gradients]

    def per_record(self) -> list[Tensor]:
        return list(self.gradients)

    def select(self, index: Tensor) -> Materialized:
        return Materialized([gradient[index] for gradient in self.gradients])


@dataclass(frozen=True)
class OuterProducts(Contribution):
    """An affine map of positions: ``left`` (B, T, p) output gradients, ``right`` (B, T, d) inputs.

    The factors may be of any float dtype and memory layout. ``weight`` is the shape of the weight (p, d, ...), None
    when only the bias is wanted; ``bias`` says whether the bias (p,) is. The order of the parameters is weight, bias.
    """

    left: Tensor
    right: Tensor
    weight: torch.Size | None
    bias: bool

    @property
    def records(self) -> int:
        return self.left.shape[0]

    def measure(self, norms: SquaredNorms) -> None:
        positions = self.left.shape[1]
        if self.weight is None:
            norms.add(row_squares(self._bias()))
        elif (size := block_records(positions**2, self.left.device)) >= self.records:
            norms.add_products(norms.input_gram(self.right), gram(self.left.float()), self.bias)
        else:
            blocks = zip(self.left.split(size), self.right.split(size), strict=True)
            norms.add(torch.cat([self._squares(left.float(), right.float()) for left, right in blocks]))

    def weighted_sums(self, weights: Tensor) -> list[Tensor]:
        left, right, column = self.left.float(), self.right.float(), weights.view(-1, 1, 1)
        if self.weight is None:
            return [weights @ self._bias()]
        if left.shape[2] > right.shape[2]:  # scale the narrow factor
            product = position_product(left, right * column).reshape(self.weight)
            repeated = weights.unsqueeze(1).expand(left.shape[:2]).reshape(-1)
            return [product, repeated @ left.flatten(0, 1)] if self.bias else [product]
        left = left * column
        product = position_product(left, right).reshape(self.weight)
        return [product, left.flatten(0, 1).sum(0)] if self.bias else [product]

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

    def choose_form(self) -> Contribution:
        return self if self.is_factored() else Materialized(self.per_record())

    def is_factored(self) -> bool:
        """Whether factors are less work than materialized gradients."""
        positions, (out_width, in_width) = self.left.shape[1], (self.left.shape[2], self.right.shape[2])
        factored = positions**2 * (in_width + out_width)
        fits = positions == 1 or factored <= OPERATIONS_PER_NUMBER * in_width * out_width
        return fits and self.weight is not None

    def join(self, other: Contribution) -> Contribution:
        if not isinstance(other, OuterProducts):
            return super().join(other)
        left, right = torch.cat([self.left, other.left], 1), torch.cat([self.right, other.right], 1)
        return OuterProducts(left, right, self.weight, self.bias)

    def _squares(self, left: Tensor, right: Tensor) -> Tensor:
        return factored_squares(gram(right), gram(left), self.bias)

    def _bias(self) -> Tensor:
        return self.left.float().sum(1)


@dataclass(frozen=True)
class EmbeddingGradient(Contribution):
    """Gradients of a lookup table: ``rows`` (B, T) int64 indices, ``values`` (B, T, d) output gradients.

    Positions at ``padding`` contribute nothing, as in ``nn.Embedding``.
    """

    rows: Tensor
    values: Tensor
    shape: torch.Size
    padding: int | None = None

    @property
    def records(self) -> int:
        return self.rows.shape[0]

    def measure(self, norms: SquaredNorms) -> None:
        values = self._values()
        if self.rows.shape[1] == 1:
            norms.add(row_squares(values[:, 0]))
        else:
            same = self.rows.unsqueeze(1) == self.rows.unsqueeze(2)
            norms.add_products(same.float(), gram(values), bias=False)

    def weighted_sums(self, weights: Tensor) -> list[Tensor]:
        values = self._values() * weights[:, None, None]
        return [values.new_zeros(self.shape).index_add_(0, self.rows.flatten(), values.flatten(0, 1))]

    def per_record(self) -> list[Tensor]:
        values = self._values()
        table = values.new_zeros(self.records * self.shape[0], self.shape[1])
        offsets = torch.arange(self.records, device=self.rows.device)[:, None] * self.shape[0]
        table.index_add_(0, (self.rows + offsets).flatten(), values.flatten(0, 1))
        return [table.reshape(self.records, *self.shape)]

    def select(self, index: Tensor) -> EmbeddingGradient:
        return EmbeddingGradient(self.rows[index], self.values[index], self.shape, self.padding)

    def join(self, other: Contribution) -> Contribution:
        if not isinstance(other, EmbeddingGradient) or other.padding != self.padding:
            return super().join(other)
        rows, values = torch.cat([self.rows, other.rows], 1), torch.cat([self.values, other.values], 1)
        return EmbeddingGradient(rows, values, self.shape, self.padding)

    def _values(self) -> Tensor:
        values = self.values.float()
        if self.padding is None:
            return values
        return values.masked_fill((self.rows == self.padding).unsqueeze(2), 0.0)


def position_product(left: Tensor, right: Tensor) -> Tensor:
    """Sum over records and positions of outer products of fp32 factors: (B, T, p) and (B, T, d) -> (p, d).

    The result may be a transposed view; it is copied once, into the sums of the step.
    """
    positions, out_width, in_width = left.shape[1], left.shape[2], right.shape[2]
    if left.device.type == "cpu" and positions > FEW_POSITIONS and not left.is_contiguous():
        # For channels-first activations, one product a record in place is faster than copying them into long rows.
        total = left.new_zeros(out_width, in_width)
        if out_width * in_width > 2 * positions * (out_width + in_width):
            return total.addbmm_(left.transpose(1, 2), right)
        size = block_records(out_width * in_width, left.device)
        for some_left, some_right in zip(left.split(size), right.split(size), strict=True):
            total += torch.bmm(some_left.transpose(1, 2), some_right).sum(0)
        return total
    left, right = left.flatten(0, 1), right.flatten(0, 1)
    # Narrow factor first; several times as fast when widths differ much, as in a low-rank adapter.
    return left.t() @ right if out_width <= in_width else (right.t() @ left).t()


def block_numbers(device: torch.device) -> int:
    """How many temporary fp32 numbers to have at once."""
    return _BLOCK_NUMBERS.get(device.type, _BLOCK_NUMBERS["cpu"])


def block_records(numbers: int, device: torch.device) -> int:
    """How many records to process at once when each needs ``numbers`` temporary fp32 numbers."""
    return max(1, block_numbers(device) // max(1, numbers))


def fold_copies(tensor: Tensor, records: int) -> Tensor:
    """(records * K, T, d) -> (records, K * T, d): a record's K noise draws become further positions."""
    if len(tensor) == records:
        return tensor
    rows, positions, width = tensor.shape
    return tensor.reshape(records, rows // records * positions, width)
