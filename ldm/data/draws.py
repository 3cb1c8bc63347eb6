"""Independent random numbers for the augmentation of each record."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch


class RecordDraws:
    """Uniform numbers that depend on the process's seed, the record, and how often the record has been read.

    If the draws depended on a record's position in the batch, adding one record would change the augmentation of all
    later ones, and the sensitivity bound C would no longer hold for an attacker who knows the training seed. Here a
    record's augmentation is independent of the other records, so adding a record changes the clipped sum of gradients
    only by its own contribution.
    """

    def __init__(self) -> None:
        self._reads: Counter[int] = Counter()

    def uniform(self, record: int, count: int = 1) -> np.ndarray:
        """Return the next ``count`` numbers in [0, 1) of a record (N = ``count``), float64 (N,)."""
        # each loader process has its own seed, and a new process gets a new one
        key = [torch.initial_seed() % 2**64, record, self._reads[record]]
        self._reads[record] += 1
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).random(count)
