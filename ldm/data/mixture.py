"""Concatenation of several data sets."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, cast

import numpy as np
from torch.utils.data import Dataset

from ldm.config import instantiate_from_config
from ldm.data.base import digest
from ldm.data.records import AnnotatedRecords
from ldm.errors import UserError


class Mixture(Dataset[dict[str, Any]]):
    """The records of several data sets, in order; items keep ``image`` and ``class_label``.

    Args:
        parts: data set nodes ``{target, params}``, or data sets.

    Raises:
        UserError: when ``parts`` is empty.
    """

    def __init__(self, parts: Sequence[Mapping[str, Any] | Dataset[dict[str, Any]]]):
        self.parts: list[AnnotatedRecords] = [
            cast(AnnotatedRecords, part) if isinstance(part, Dataset) else instantiate_from_config(part)
            for part in parts
        ]
        if not self.parts:
            raise UserError("Mixture: no parts; give a list of {target: ..., params: ...}")
        self._ends = list(accumulate(len(part) for part in self.parts))
        self.num_classes = max(getattr(part, "num_classes", None) or 1 for part in self.parts)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        part, row = self._place(index)
        return part[row]

    @property
    def labels(self) -> np.ndarray:
        """All labels, int64 (N,)."""
        return np.concatenate([np.asarray(part.labels) for part in self.parts])

    @property
    def deterministic(self) -> bool:
        """True when no part has random augmentation."""
        return all(getattr(part, "deterministic", False) for part in self.parts)

    def annotations(self, index: int) -> dict[str, Any]:
        """Return the fields of item ``index`` other than its image."""
        part, row = self._place(index)
        return part.annotations(row)

    def fingerprint(self) -> str:
        """Return a digest of the parts' fingerprints, in order."""
        return digest(type(self).__name__, [part.fingerprint() for part in self.parts])

    def _place(self, index: int) -> tuple[AnnotatedRecords, int]:
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"Mixture has {len(self)} records, asked for number {index}")
        index %= len(self)
        number = bisect_right(self._ends, index)
        return self.parts[number], index - (self._ends[number - 1] if number else 0)
