"""Squared norms of per-record gradients that are kept as factors, added up over layers.

The squared norm of ``sum_t g_t a_t^T`` is ``sum_ts (a_t . a_s)(g_t . g_s)``: the total of the elementwise product of
two Gram matrices. Such products of layers with equally many positions can be added before the total is taken, so that
many small layers cost few operations.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

# An fp32 dot product is off by a few units in the last place of |x||y| (2 on average and 17 at most were measured). The
# factored norm sums such products with cancellation, so this multiple of (sum_t |a_t||g_t|)^2 is added to keep it an
# upper bound. On random data that overstates a norm over T positions by about T * 1.2e-7.
ROUNDING = 2.0**-22

# Up to this many positions T, (sum_t |a_t||g_t|)^2 may be replaced by T sum_t (|a_t||g_t|)^2, which is at most T times
# as much and, being linear in the products, can be taken once for all layers.
FEW_POSITIONS = 16

# A long fp32 sum of positive numbers drifts: adding one number n times is off by up to n * 2^-25. So fp32 sums of
# squares end after this many numbers, and those of layers after this many layers; longer ones continue in float64.
_LONGEST_SUM = 256
MOST_LAYERS = 16


class SquaredNorms:
    """The (B,) squared norms of gradients that are clipped together, added part by part.

    The result is an upper bound up to relative 1e-6. A record with a non-finite part gets a non-finite result.
    """

    def __init__(self) -> None:
        self._squares: list[Tensor] = []
        self._products: dict[int, Tensor] = {}
        self._layers: Counter[int] = Counter()  # added to each of the products
        self._latest: tuple[Tensor, Tensor] | None = None

    def add(self, squares: Tensor) -> None:
        """Add squared norms (B,), fp32 or float64."""
        self._squares.append(squares)

    def add_products(self, inputs: Tensor, grad_outputs: Tensor, bias: bool) -> None:
        """Add the squared norms of gradients with Gram matrices ``inputs`` and ``grad_outputs`` (B, T, T) fp32.

        ``grad_outputs`` is overwritten. ``bias``: whether to include the layer's bias, a weight on a constant input of
        one.
        """
        positions = grad_outputs.shape[1]
        if positions > FEW_POSITIONS:
            self.add(factored_squares(inputs, grad_outputs, bias))
            return
        self._make_room(positions, 1)
        if positions not in self._products:
            self._products[positions] = _products(inputs, grad_outputs, bias)
        else:
            total = self._products[positions].addcmul_(inputs, grad_outputs)
            if bias:
                total.add_(grad_outputs)
        self._layers[positions] += 1

    def add_stack(self, inputs: Tensor, grad_outputs: Tensor, bias: bool, layers: int) -> None:
        """The same for a stack of at most `MOST_LAYERS` ``layers``, of Gram matrices (m, B, T, T) fp32."""
        positions = grad_outputs.shape[2]
        if positions > FEW_POSITIONS:
            squares = factored_squares(inputs.flatten(0, 1), grad_outputs.flatten(0, 1), bias)
            self._squares += squares.unflatten(0, inputs.shape[:2]).unbind(0)
            return
        self._make_room(positions, layers)
        products = _products(inputs, grad_outputs, bias).sum(0)
        known = self._products.get(positions)
        self._products[positions] = products if known is None else known.add_(products)
        self._layers[positions] += layers

    def _make_room(self, positions: int, layers: int) -> None:
        """End the sum of products over layers before it gets longer than `MOST_LAYERS`."""
        if self._layers[positions] + layers > MOST_LAYERS and positions in self._products:
            self.add(_raised_total(self._products.pop(positions)))
            del self._layers[positions]

    def input_gram(self, inputs: Tensor) -> Tensor:
        """Gram matrix of a layer's ``inputs`` (B, T, d), kept in case the next layer has the same inputs.

        This is so for the query, key and value layers of an attention.
        """
        if self._latest is None or not _same_memory(self._latest[0], inputs):
            self._latest = inputs, gram(inputs.float())
        return self._latest[1]

    def total(self) -> Tensor:
        """(B,) fp32: everything added so far."""
        squares = [*self._squares, *map(_raised_total, self._products.values())]
        return torch.stack([part.double() for part in squares]).sum(0).float()


def _raised_total(products: Tensor) -> Tensor:
    """(B,) totals of summed products (B, T, T), raised by T times the rounding error that their diagonals allow."""
    positions = products.shape[1]
    same = torch.eye(positions, dtype=products.dtype, device=products.device)
    return (products.flatten(1) @ (1.0 + positions * ROUNDING * same).flatten()).clamp_min_(0.0)


def factored_squares(inputs: Tensor, grad_outputs: Tensor, bias: bool = False) -> Tensor:
    """(B,) sums of the elementwise product of two Gram matrices (B, T, T), raised by their possible rounding error.

    ``grad_outputs`` is overwritten. A record with a non-finite entry gives a non-finite result.
    """
    products = _products(inputs, grad_outputs, bias)
    lengths = products.diagonal(dim1=1, dim2=2).sqrt().sum(1)  # sum_t |a_t||g_t|
    return products.flatten(1).sum(1).clamp_min_(0.0).addcmul_(lengths, lengths, value=ROUNDING)


def gram(vectors: Tensor) -> Tensor:
    """Dot products of all pairs of positions: (B, T, d) fp32 -> (B, T, T)."""
    return torch.bmm(vectors, vectors.transpose(1, 2))


def _products(inputs: Tensor, grad_outputs: Tensor, bias: bool) -> Tensor:
    """``(inputs + bias) * grad_outputs``, written over ``grad_outputs``."""
    return grad_outputs.addcmul_(inputs, grad_outputs) if bias else grad_outputs.mul_(inputs)


def _same_memory(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors that are both alive are the same view of the same memory."""
    layouts = [(some.data_ptr(), some.shape, some.stride(), some.dtype) for some in (first, second)]
    return layouts[0] == layouts[1]


def row_squares(gradients: Tensor) -> Tensor:
    """(B,) float64: squared norm of each (B, ...) fp32 entry, from short fp32 sums that are added in float64."""
    flat = gradients.float().flatten(1)
    blocks = flat.shape[1] // _LONGEST_SUM * _LONGEST_SUM
    total = flat.new_zeros(len(flat), dtype=torch.float64)
    for part in (flat[:, :blocks].unflatten(1, (-1, _LONGEST_SUM)), flat[:, blocks:].unsqueeze(1)):
        total += torch.linalg.vector_norm(part, dim=2).double().square_().sum(1)
    return total
