"""The Inception score: a classifier's confidence in each image, and the diversity of classes over all images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ldm.errors import UserError


@dataclass(frozen=True)
class InceptionScore:
    """Mean and standard deviation over splits; between 1 and the number of the classifier's classes."""

    value: float
    deviation: float
    splits: int
    count: int


class RunningInceptionScore:
    """exp E[KL(p(y|x) || p(y))] from batches of logits; holds one row of class sums per split, and no images.

    Image i belongs to split i mod `splits`, so that a file sorted by class does not give splits of one class.
    Salimans et al. 2016, section 4.
    """

    def __init__(self, splits: int = 10) -> None:
        if splits < 1:
            raise UserError(f"{splits} splits asked for; at least 1 is needed")
        self.splits = splits
        self.count = 0
        self._sums: Tensor | None = None  # (splits, classes)
        self._entropies = torch.zeros(splits, dtype=torch.float64)  # sums of sum_y p log p
        self._counts = torch.zeros(splits, dtype=torch.float64)

    def update(self, logits: Tensor) -> None:
        """Add logits (B, classes)."""
        logs = logits.detach().cpu().double().log_softmax(dim=1)
        if self._sums is None:
            self._sums = torch.zeros(self.splits, logs.shape[1], dtype=torch.float64)
        split = (torch.arange(len(logs)) + self.count) % self.splits
        probabilities = logs.exp()
        self._sums.index_add_(0, split, probabilities)
        self._entropies.index_add_(0, split, (probabilities * logs).sum(dim=1))
        self._counts.index_add_(0, split, torch.ones(len(logs), dtype=torch.float64))
        self.count += len(logs)

    def result(self) -> InceptionScore:
        """The score of all images so far. Raises UserError when a split has fewer than two images."""
        if self._sums is None or float(self._counts.min()) < 2:
            raise UserError(
                f"{self.count} images do not fill {self.splits} splits of the Inception score; "
                f"at least {2 * self.splits} needed"
            )
        marginal = self._sums / self._counts[:, None]
        against = torch.special.xlogy(marginal, marginal).sum(dim=1)
        scores = (self._entropies / self._counts - against).exp().numpy()
        return InceptionScore(float(np.mean(scores)), float(np.std(scores)), self.splits, self.count)
