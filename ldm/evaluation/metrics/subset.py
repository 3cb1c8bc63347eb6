"""A random subset of bounded size from a stream of feature rows, for metrics that compare pairs of images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ldm.errors import UserError


class SeededSubset:
    """At most `limit` rows of a stream, every row equally likely, in stream order; holds (limit, D) float32.

    The choice depends on the seed and the length of the stream, not on the batch size. Each row draws a uniform key,
    and the rows with the smallest keys stay (reservoir sampling, Vitter 1985).
    """

    def __init__(self, limit: int, seed: int = 0) -> None:
        if limit < 1:
            raise UserError(f"a subset of {limit} images was asked for; at least 1 is needed")
        self.limit = limit
        self.seen = 0
        self._random = np.random.default_rng(seed)
        self._keys = np.empty(0)
        self._rows: NDArray[np.float32] | None = None

    def update(self, features: Tensor | NDArray[Any]) -> None:
        """Offer the rows of `features` (B, D)."""
        rows = np.asarray(features.detach().cpu() if isinstance(features, Tensor) else features, np.float32)
        keys = self._random.random(len(rows))
        self.seen += len(rows)
        if len(self._keys) == self.limit:  # drops most rows of a long stream without a copy
            wanted = keys < self._keys.max()
            rows, keys = rows[wanted], keys[wanted]
        if not len(rows):
            return
        self._keys = np.concatenate([self._keys, keys])
        self._rows = rows.copy() if self._rows is None else np.concatenate([self._rows, rows])
        if len(self._keys) > self.limit:
            kept = np.sort(np.argpartition(self._keys, self.limit - 1)[: self.limit])
            self._keys, self._rows = self._keys[kept], self._rows[kept]

    @property
    def rows(self) -> NDArray[np.float32]:
        """The chosen rows (n, D), n = min(limit, length of the stream). Raises UserError for an empty stream."""
        if self._rows is None:
            raise UserError("there are no images to choose from")
        return self._rows
