"""The default engine: one forward, one backward, and one weighted product per layer (Bu et al. 2022, arXiv 2210.00038).

The backward pass computes no weight gradients. As it passes a layer, the norms of that layer's per-record gradients are
taken, and the layer's input and output gradient (or, when smaller, the gradients themselves) are kept. When all norms
are known, each kept pair is multiplied once with the clip factors. Norm and sum come from the same numbers, so the
bound holds whatever the precision of the forward pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.privacy.capture import Capture, Layer
from ldm.privacy.engines import ClippedSums, Factors, Groups, RowLoss, Rows, row_losses
from ldm.privacy.layers import Contribution


class BookkeepingEngine:
    """Engine over ``layers`` (see :class:`ldm.privacy.engines.Engine`)."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers

    def clipped_sums(
        self, loss: RowLoss, rows: Rows, records: int, copies: int, groups: Groups, factors: Factors
    ) -> ClippedSums:
        book = _Book(self, records)
        device = next(iter(rows.values())).device
        with Capture(self._layers, records * copies, book.enter, device) as capture:
            with torch.enable_grad():
                total = row_losses(loss, rows, records * copies).sum() / copies
            book.expect(capture.uses, self._layers)
            # An autocast around this call is meant for the forward pass only.
            with torch.autocast(device.type, enabled=False):
                capture.backward(total)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return book.settle(groups, factors)

    def form(self, contribution: Contribution) -> Contribution:
        """The form in which a contribution is measured and kept."""
        return contribution.cheapest()


class _Book:
    """The entries of one pass: contributions and squared norms per parameter name."""

    def __init__(self, engine: BookkeepingEngine, records: int) -> None:
        self._engine = engine
        self._records = records
        self._expected: Counter[str] = Counter()
        self._pending: dict[str, list[Contribution]] = {}
        self._entries: dict[str, Contribution] = {}
        self._squares: dict[str, Tensor] = {}

    def expect(self, uses: Counter[str], layers: Sequence[Layer]) -> None:
        """Note how many contributions each parameter will get: one per use of each layer it belongs to."""
        for layer in layers:
            for name in layer.names.values():
                self._expected[name] += uses[layer.path]

    def enter(self, layer: Layer, inputs: Tensor, grad: Tensor) -> None:
        """Take the contributions of one use of a layer; a parameter whose uses are complete is measured at once."""
        found = layer.rule.contributions(layer.module, inputs, grad, self._records, layer.names.keys())
        for local, name in layer.names.items():
            parts = self._pending.setdefault(name, [])
            parts.append(found[local])
            if len(parts) == self._expected[name]:
                self._measure(name)

    def settle(self, groups: Groups, factors: Factors) -> ClippedSums:
        """Clip and sum everything that was entered."""
        for name in list(self._pending):  # some use of these did not reach the loss
            self._measure(name)
        if not self._squares:
            return ClippedSums({}, 0)
        some = next(iter(self._squares.values()))
        squares = some.new_zeros(groups.count, self._records)
        for name, square in self._squares.items():
            squares[groups.index[name]] += square
        weights = factors(squares)
        finite = squares.isfinite().all(0)
        if bool(finite.all()):
            return ClippedSums(self._sum(groups, weights), 0)
        # A factor of zero would not do: zero times NaN is NaN.
        index = finite.nonzero().squeeze(1)
        self._entries = {name: entry.select(index) for name, entry in self._entries.items()}
        return ClippedSums(self._sum(groups, weights[:, index]), self._records - len(index))

    def _measure(self, name: str) -> None:
        first, *others = self._pending.pop(name)
        for other in others:
            first = first.join(other)
        self._entries[name] = self._engine.form(first)
        self._squares[name] = self._entries[name].squared_norms()

    def _sum(self, groups: Groups, weights: Tensor) -> dict[str, Tensor]:
        sums = {}
        while self._entries:  # popped so that activations are freed as soon as they are used
            name, entry = self._entries.popitem()
            sums[name] = entry.weighted_sum(weights[groups.index[name]])
        return sums
