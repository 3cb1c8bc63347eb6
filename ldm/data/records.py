"""What this package asks of a data set that it is given; torch's own type has neither a length nor these methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np


class Records(Protocol):
    """A map-style data set: a length, and items by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]: ...


class FingerprintedRecords(Records, Protocol):
    """Records with a digest that tells them from others."""

    def fingerprint(self) -> str: ...


class AnnotatedRecords(FingerprintedRecords, Protocol):
    """Records whose fields other than the image are read without decoding it; ``labels``: int64 (N,), or None."""

    @property
    def labels(self) -> np.ndarray | None: ...

    def annotations(self, index: int, /) -> dict[str, Any]: ...


class BatchedRecords(Records, Protocol):
    """Records that are read a whole batch at a time."""

    def batch(self, indices: Sequence[int], /) -> dict[str, Any]: ...


@runtime_checkable
class SourcedRecords(Protocol):
    """Records at the places ``rows`` (N,) of the files ``source``, "" when they have no name."""

    source: str
    rows: np.ndarray

    def __len__(self) -> int: ...
