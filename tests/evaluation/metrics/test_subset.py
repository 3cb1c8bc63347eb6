"""The bounded choice from a stream: same whatever the batches, fair, and never more than asked."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.errors import UserError
from ldm.evaluation.metrics.subset import SeededSubset


def chosen(rows: np.ndarray, cuts: list[int], limit: int, seed: int = 0) -> np.ndarray:
    subset = SeededSubset(limit, seed)
    for part in np.split(rows, cuts):
        subset.update(part)
    return subset.rows


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.lists(st.integers(0, 60), max_size=5), st.integers(1, 70), st.integers(0, 9))
def test_batches_do_not_change_the_choice(count: int, cuts: list[int], limit: int, seed: int) -> None:
    rows = np.arange(count, dtype=np.float32)[:, None]
    whole = chosen(rows, [], limit, seed)
    assert len(whole) == min(limit, count) and np.all(np.diff(whole[:, 0]) > 0)
    assert np.array_equal(chosen(rows, sorted(cuts), limit, seed), whole)


def test_every_row_is_equally_likely() -> None:
    rows = np.arange(20, dtype=np.float32)[:, None]
    hits = np.zeros(20)
    for seed in range(2000):
        hits[chosen(rows, [7, 12], 5, seed)[:, 0].astype(int)] += 1
    assert np.abs(hits / 2000 - 0.25).max() < 0.05  # five standard deviations


def test_tensors_are_taken_and_mistakes_are_named() -> None:
    subset = SeededSubset(2)
    with pytest.raises(UserError, match="no images"):
        _ = subset.rows
    subset.update(torch.ones(3, 4))
    assert subset.rows.shape == (2, 4) and subset.rows.dtype == np.float32 and subset.seen == 3
    with pytest.raises(UserError, match="at least 1"):
        SeededSubset(0)
