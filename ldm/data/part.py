"""A part of a data set: some of its records, in a fixed random order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from torch.utils.data import Dataset

from ldm.config import instantiate_from_config
from ldm.data.base import digest
from ldm.data.records import AnnotatedRecords
from ldm.errors import UserError


class Part(Dataset[dict[str, Any]]):
    """``count`` records of a data set from place ``start`` of a fixed random order; items are those of the set.

    Args:
        of: data set node ``{target, params}``, or a data set.
        count: number of records, at most those that are left from ``start`` on.
        start: first place in the random order, so that two parts are disjoint.

    Raises:
        UserError: when the set has fewer records.
    """

    def __init__(self, of: Mapping[str, Any] | Dataset[dict[str, Any]], count: int, start: int = 0):
        self.dataset: AnnotatedRecords = (
            cast(AnnotatedRecords, of) if isinstance(of, Dataset) else instantiate_from_config(of)
        )
        if count < 1 or start < 0 or start + count > len(self.dataset):
            raise UserError(
                f"Part: {count} records from place {start} on, but {type(self.dataset).__name__} has "
                f"{len(self.dataset)} in all"
            )
        self.rows = np.random.default_rng(0).permutation(len(self.dataset))[start : start + count]
        self.num_classes = getattr(self.dataset, "num_classes", None)
        self.class_names = getattr(self.dataset, "class_names", ())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dataset[int(self.rows[index])]

    @property
    def labels(self) -> np.ndarray | None:
        """The labels of the part, int64 (count,); None for a set without."""
        labels = getattr(self.dataset, "labels", None)
        return None if labels is None else labels[self.rows]

    @property
    def deterministic(self) -> bool:
        """Whether the set has no random augmentation."""
        return bool(getattr(self.dataset, "deterministic", False))

    def annotations(self, index: int) -> dict[str, Any]:
        """Return the fields of item ``index`` other than its image."""
        return self.dataset.annotations(int(self.rows[index]))

    def fingerprint(self) -> str:
        """Return a digest of the set's fingerprint and the chosen records."""
        return digest(type(self).__name__, [self.dataset.fingerprint(), self.rows.tolist()])
