"""Random numbers for augmenting records, drawn for each record on its own."""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch


class RecordDraws:
    """Uniform numbers that are a function of the process's seed, the record, and how often it has been read.

    Numbers dealt out by place in the batch would change for every later record when one record is added, and whoever
    knows the training seed could tell. Here a record's augmentation does not depend on which other records are read,
    so that one record still moves the clipped sum of gradients by its own contribution alone.
    """

    def __init__(self) -> None:
        self._reads: Counter[int] = Counter()

    def uniform(self, record: int, count: int = 1) -> np.ndarray:
        """Return the next ``count`` numbers in [0, 1) of a record (N = ``count``), float64 (N,)."""
        # in a loader's process the seed is that process's own, and new when the process is
        key = [torch.initial_seed() % 2**64, record, self._reads[record]]
        self._reads[record] += 1
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).random(count)
