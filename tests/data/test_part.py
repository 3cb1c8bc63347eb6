"""A part of a data set is some of its records, the same each time, and two parts can be disjoint."""

from __future__ import annotations

import numpy as np
import pytest

from ldm.data.base import ArrayDataset
from ldm.data.part import Part
from ldm.errors import UserError


def numbered(count: int) -> ArrayDataset:
    images = np.repeat(np.arange(count, dtype=np.uint8)[:, None], 64, axis=1).reshape(count, 8, 8)
    return ArrayDataset(images, np.arange(count) % 3, channels=1)


def values(part: Part) -> list[int]:
    return [round(float(part[index]["image"].mean() + 1) * 127.5) for index in range(len(part))]


def test_parts_are_disjoint_fixed_and_complete() -> None:
    whole = numbered(20)
    one, other = Part(whole, 12), Part(whole, 8, 12)
    assert sorted(values(one) + values(other)) == list(range(20))
    assert values(one) == values(Part(numbered(20), 12)) != list(range(12))
    assert one.labels.tolist() == [value % 3 for value in values(one)]
    assert one.annotations(3) == {"class_label": values(one)[3] % 3} and one.deterministic
    assert one.fingerprint() == Part(numbered(20), 12).fingerprint() != other.fingerprint()


def test_too_many_records_are_refused() -> None:
    with pytest.raises(UserError, match="9 records from place 12 on, but ArrayDataset has 20"):
        Part(numbered(20), 9, 12)
