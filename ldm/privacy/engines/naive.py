"""The reference engine: one backward pass per record, plain autograd, any layer. Slow; for tests of the others."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ldm.privacy.engines.base import ClippedSums, Factors, Groups, PerExampleLoss, Request, Rows, per_example_losses


class NaiveEngine:
    """Engine that loops over records (see :class:`ldm.privacy.engines.base.Engine`)."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = parameters

    def clipped_sums(
        self, loss: PerExampleLoss, rows: Rows, request: Request, groups: Groups, factors: Factors
    ) -> ClippedSums:
        sums: dict[str, Tensor] = {}
        skipped, multiplicity = 0, request.multiplicity
        for record in range(request.counted):
            own = {key: value[record * multiplicity : (record + 1) * multiplicity] for key, value in rows.items()}
            gradients = self._gradients(loss, own, multiplicity)
            device = next(iter(rows.values())).device
            exact = torch.zeros(groups.count, 1, dtype=torch.float64, device=device)
            for name, gradient in gradients.items():
                exact[groups.index[name]] += gradient.double().square().sum()
            squares = exact.float()
            weights = factors(squares)
            finite = bool(squares.isfinite().all())
            skipped += not finite
            for name, gradient in gradients.items():
                clipped = gradient * weights[groups.index[name]] if finite else torch.zeros_like(gradient)
                sums[name] = sums[name] + clipped if name in sums else clipped
        return ClippedSums(sums, skipped)

    def _gradients(self, loss: PerExampleLoss, own: Rows, multiplicity: int) -> dict[str, Tensor]:
        with torch.enable_grad():
            mean = per_example_losses(loss, own, multiplicity).mean()
        with torch.autocast(mean.device.type, enabled=False):  # an autocast around this call is for the forward pass
            found = torch.autograd.grad(mean, list(self._parameters.values()), allow_unused=True)
        named = zip(self._parameters, found, strict=True)
        return {name: gradient.float() for name, gradient in named if gradient is not None}
