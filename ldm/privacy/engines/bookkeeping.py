"""The default engine: one forward, one backward, and one weighted product per layer (Bu et al. 2022, arXiv 2210.00038).

The backward pass computes no weight gradients. When it passes a layer (for small layers, when it has ended), the engine
computes the norms of that layer's per-record gradients and keeps the layer's input and output gradient (or the
gradients themselves, when they are smaller). When all norms are known, each kept pair is multiplied once with the clip
factors. Norm and sum come from the same numbers, so the bound holds for any precision of the forward pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldm.privacy.engines.base import ClippedSums, Factors, Groups, PerExampleLoss, Request, Rows, per_example_losses
from ldm.privacy.engines.capture import Bundle, Capture, Layer, Use
from ldm.privacy.engines.layers import Contribution, Materialized, SquaredNorms
from ldm.privacy.engines.precision import FullPrecision
from ldm.privacy.engines.stacks import Stack, arrange

_FEW_NUMBERS = 4096  # per record; gradients up to this size are handled together


class BookkeepingEngine:
    """Engine over ``layers`` (see :class:`ldm.privacy.engines.base.Engine`)."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self._layers = layers

    def clipped_sums(
        self, loss: PerExampleLoss, rows: Rows, request: Request, groups: Groups, factors: Factors
    ) -> ClippedSums:
        device = next(iter(rows.values())).device
        book = _Book(self, request, groups)
        with Capture(self._layers, request.rows, book, device) as capture:
            with torch.enable_grad():
                total = per_example_losses(loss, rows, request.rows).sum() / request.multiplicity
            book.expect(capture.uses, self._layers, FullPrecision(device.type))
            # An autocast around this call is meant for the forward pass only.
            with torch.autocast(device.type, enabled=False):
                capture.backward(total)
        with torch.no_grad(), torch.autocast(device.type, enabled=False), FullPrecision(device.type):
            return book.finalize(factors)

    def arrange(
        self, uses: Sequence[Use], records: int, expected: Counter[Bundle], groups: Groups
    ) -> tuple[list[Use], list[Stack]]:
        """The uses that are handled one by one, and the stacks of those that are handled together."""
        if groups.count > 1:  # every layer has a norm of its own
            return list(uses), []
        return arrange(uses, records, expected)

    def form(self, contribution: Contribution) -> Contribution:
        """The form in which a contribution is measured and kept."""
        return contribution.choose_form()


@dataclass(frozen=True)
class _Entry:
    """A measured contribution to ``names``, parameters of clipping group ``group``."""

    names: Bundle
    contribution: Contribution
    group: int


class _Book:
    """The entries of one pass."""

    def __init__(self, engine: BookkeepingEngine, request: Request, groups: Groups) -> None:
        self._engine = engine
        self._request = request
        self._records = request.records
        self._groups = groups
        self._norms = [SquaredNorms() for _ in range(groups.count)]
        self._exact: AbstractContextManager[None] = nullcontext()
        self._expected: Counter[Bundle] = Counter()
        self._pending: dict[Bundle, list[Contribution]] = {}
        self._small: dict[Bundle, Materialized] = {}
        self._entries: list[_Entry] = []

    def expect(self, uses: Counter[str], layers: Sequence[Layer], exact: AbstractContextManager[None]) -> None:
        """Note how many contributions each bundle will get, one per use of each layer it belongs to.

        They will be measured inside the context ``exact``.
        """
        self._exact = exact
        for layer in layers:
            for names in layer.bundles.values():
                self._expected[names] += uses[layer.path]

    def enter(self, use: Use) -> None:
        """Add the contributions of one use of a layer, and measure a bundle as soon as all its uses are added."""
        layer = use.layer
        with self._exact:
            for own, names in layer.bundles.items():
                part = layer.rule.contribution(layer.module, use.inputs, use.grad, self._records, own)
                if self._expected[names] == 1:
                    self._measure(names, part)
                    continue
                parts = self._pending.setdefault(names, [])
                parts.append(part)
                if len(parts) == self._expected[names]:
                    self._measure_joined(names)

    def enter_small(self, uses: list[Use]) -> None:
        """Add the contributions of many uses; those of one shape together, when they are clipped together.

        A stack copies its uses, so each is let go of before the next one is made.
        """
        alone, stacks = self._engine.arrange(uses, self._records, self._expected, self._groups)
        uses.clear()
        with self._exact:
            while stacks:
                self._enter_stack(stacks.pop())
        while alone:
            use = alone.pop(0)
            self.enter(replace(use, grad=use.layer.rule.gradient_layout(use.grad)))

    def _enter_stack(self, stack: Stack) -> None:
        first = stack.uses[0].layer
        (own,) = first.bundles
        parts = first.rule.together(
            [(use.layer.module, use.inputs, use.grad) for use in stack.uses], self._records, own, stack.sharing
        )
        bundles = [names for use in stack.uses for names in use.layer.bundles.values()]
        if len(parts) == 1:
            self._enter(sum(bundles, ()), parts[0])
            return
        for names, part in zip(bundles, parts, strict=True):
            self._measure(names, part)

    def finalize(self, factors: Factors) -> ClippedSums:
        """Clip and sum everything that was entered."""
        for names in list(self._pending):  # some use of these did not reach the loss
            self._measure_joined(names)
        self._pack_small()
        if not self._entries:
            return ClippedSums({}, 0)
        squares = self._group_squares()
        counted = self._request.counted
        weights = factors(squares)
        if counted < self._records:
            weights = weights * (torch.arange(self._records, device=weights.device) < counted)
        finite = squares.isfinite().all(0)
        if not self._request.checked:
            return ClippedSums(self._sums(weights, None), finite[:counted].logical_not().sum())
        if bool(finite.all()):
            return ClippedSums(self._sums(weights, None), 0)
        # Records with non-finite gradients are left out, since a factor of zero times NaN is NaN.
        index = finite.nonzero().squeeze(1)
        return ClippedSums(self._sums(weights[:, index], index), counted - int(finite[:counted].sum()))

    def _measure_joined(self, names: Bundle) -> None:
        first, *others = self._pending.pop(names)
        for other in others:
            first = first.join(other)
        self._measure(names, first)

    def _measure(self, names: Bundle, contribution: Contribution) -> None:
        kept = self._engine.form(contribution)
        if isinstance(kept, Materialized) and sum(part[0].numel() for part in kept.gradients) <= _FEW_NUMBERS:
            self._small[names] = kept
        else:
            self._enter(names, kept)

    def _enter(self, names: Bundle, contribution: Contribution) -> None:
        group = self._groups.index[names[0]]
        contribution.measure(self._norms[group])
        self._entries.append(_Entry(names, contribution, group))

    def _pack_small(self) -> None:
        """Pack small gradients: one norm and one product for all that are clipped together."""
        for group in range(self._groups.count):
            members = [names for names in self._small if self._groups.index[names[0]] == group]
            if members:
                parts = [part for names in members for part in self._small[names].gradients]
                self._enter(sum(members, ()), _Packed.of(parts))
        self._small.clear()

    def _group_squares(self) -> Tensor:
        """(groups, B) squared norms; those of a group that the loss did not reach are zero."""
        totals = {group: self._norms[group].total() for group in {entry.group for entry in self._entries}}
        none = torch.zeros_like(next(iter(totals.values())))
        return torch.stack([totals.get(group, none) for group in range(self._groups.count)])

    def _sums(self, weights: Tensor, index: Tensor | None) -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        by_group = weights.unbind(0)
        while self._entries:  # popped so that activations are freed as soon as they are used
            entry = self._entries.pop()
            contribution = entry.contribution if index is None else entry.contribution.select(index)
            totals = contribution.weighted_sums(by_group[entry.group])
            sums.update(zip(entry.names, totals, strict=True))
        return sums


@dataclass(frozen=True)
class _Packed(Materialized):
    """Small gradients side by side: ``gradients`` is one (B, n) tensor, ``shapes`` the parameters' shapes."""

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
