"""The default engine: one forward, one backward, and one weighted product per layer (Bu et al. 2022, arXiv 2210.00038).

The backward pass computes no weight gradients. As it passes a layer, the norms of that layer's per-record gradients are
taken, and the layer's input and output gradient (or, when smaller, the gradients themselves) are kept. When all norms
are known, each kept pair is multiplied once with the clip factors. Norm and sum come from the same numbers, so the
bound holds whatever the precision of the forward pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.privacy.capture import Capture, Layer
from ldm.privacy.engines import ClippedSums, Factors, Groups, RowLoss, Rows, row_losses
from ldm.privacy.layers import Contribution, WrittenOut
from ldm.privacy.precision import full_precision

Bundle = tuple[str, ...]

_FEW_NUMBERS = 4096  # per record; gradients up to this size are handled together


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
        with torch.no_grad(), torch.autocast(device.type, enabled=False), full_precision(device.type):
            return book.settle(groups, factors)

    def form(self, contribution: Contribution) -> Contribution:
        """The form in which a contribution is measured and kept."""
        return contribution.cheapest()


@dataclass(frozen=True)
class _Entry:
    """A measured contribution to ``names``, parameters that are clipped together."""

    names: Bundle
    contribution: Contribution
    squares: Tensor


class _Book:
    """The entries of one pass."""

    def __init__(self, engine: BookkeepingEngine, records: int) -> None:
        self._engine = engine
        self._records = records
        self._expected: Counter[Bundle] = Counter()
        self._pending: dict[Bundle, list[Contribution]] = {}
        self._small: dict[Bundle, WrittenOut] = {}
        self._entries: list[_Entry] = []

    def expect(self, uses: Counter[str], layers: Sequence[Layer]) -> None:
        """Note how many contributions each bundle will get: one per use of each layer it belongs to."""
        for layer in layers:
            for names in layer.bundles.values():
                self._expected[names] += uses[layer.path]

    def enter(self, layer: Layer, inputs: Tensor, grad: Tensor) -> None:
        """Take the contributions of one use of a layer; a bundle whose uses are complete is measured at once."""
        with full_precision(grad.device.type):
            for own, names in layer.bundles.items():
                parts = self._pending.setdefault(names, [])
                parts.append(layer.rule.contribution(layer.module, inputs, grad, self._records, own))
                if len(parts) == self._expected[names]:
                    self._measure(names)

    def settle(self, groups: Groups, factors: Factors) -> ClippedSums:
        """Clip and sum everything that was entered."""
        for names in list(self._pending):  # some use of these did not reach the loss
            self._measure(names)
        self._pack_small(groups)
        if not self._entries:
            return ClippedSums({}, 0)
        squares = self._group_squares(groups)
        weights = factors(squares)
        finite = squares.isfinite().all(0)
        if bool(finite.all()):
            return ClippedSums(self._sums(groups, weights, None), 0)
        # A factor of zero would not do: zero times NaN is NaN.
        index = finite.nonzero().squeeze(1)
        return ClippedSums(self._sums(groups, weights[:, index], index), self._records - len(index))

    def _measure(self, names: Bundle) -> None:
        first, *others = self._pending.pop(names)
        for other in others:
            first = first.join(other)
        kept = self._engine.form(first)
        if isinstance(kept, WrittenOut) and sum(part[0].numel() for part in kept.gradients) <= _FEW_NUMBERS:
            self._small[names] = kept
        else:
            self._entries.append(_Entry(names, kept, kept.squared_norms()))

    def _pack_small(self, groups: Groups) -> None:
        """Biases, norm layers and the like: one norm and one product for all that are clipped together."""
        for group in range(groups.count):
            members = [names for names in self._small if groups.index[names[0]] == group]
            if members:
                packed = _Packed.of([part for names in members for part in self._small[names].gradients])
                self._entries.append(_Entry(sum(members, ()), packed, packed.squared_norms()))
        self._small.clear()

    def _group_squares(self, groups: Groups) -> Tensor:
        """(groups, B) squared norms."""
        found: list[list[Tensor]] = [[] for _ in range(groups.count)]
        for entry in self._entries:
            found[groups.index[entry.names[0]]].append(entry.squares)
        none = self._entries[0].squares.new_zeros(self._records)
        return torch.stack([torch.stack(squares).sum(0) if squares else none for squares in found])

    def _sums(self, groups: Groups, weights: Tensor, index: Tensor | None) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        by_group = weights.unbind(0)
        while self._entries:  # popped so that activations are freed as soon as they are used
            entry = self._entries.pop()
            contribution = entry.contribution if index is None else entry.contribution.select(index)
            totals = contribution.weighted_sums(by_group[groups.index[entry.names[0]]])
            sums.update(zip(entry.names, totals, strict=True))
        return sums


@dataclass(frozen=True)
class _Packed(WrittenOut):
    """Small gradients side by side: ``gradients`` is one (B, n) tensor, ``shapes`` those of the parameters in it."""

    shapes: Sequence[torch.Size]

    @classmethod
    def of(cls, parts: Sequence[Tensor]) -> _Packed:
        """Pack gradients (B, *shape) of any shapes."""
        return cls([torch.cat([part.flatten(1) for part in parts], 1)], [part.shape[1:] for part in parts])

    def weighted_sums(self, weights: Tensor) -> list[Tensor]:
        (total,) = super().weighted_sums(weights)
        pieces = total.split([shape.numel() for shape in self.shapes])
        return [piece.reshape(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def select(self, index: Tensor) -> _Packed:
        return _Packed([self.gradients[0][index]], self.shapes)
