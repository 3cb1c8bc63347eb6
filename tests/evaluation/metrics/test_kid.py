"""KID against the sum over pairs: the exact estimate, and the subsets that torch-fidelity draws."""

from __future__ import annotations

import numpy as np
import pytest

from ldm.errors import UserError
from ldm.evaluation.metrics.kid import kernel_distance


def features(seed: int, count: int = 40, dim: int = 6, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)) + shift


def by_pairs(first: np.ndarray, second: np.ndarray) -> float:
    """The slow, obvious twin."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    def within(rows: np.ndarray) -> float:
        pairs = [(i, j) for i in range(len(rows)) for j in range(len(rows)) if i != j]
        return sum(kernel(rows[i], rows[j]) for i, j in pairs) / len(pairs)

    across = sum(kernel(a, b) for a in first for b in second) / (len(first) * len(second))
    return within(first) + within(second) - 2 * across


def test_one_estimate_equals_the_sum_over_pairs() -> None:
    first, second = features(0, 12), features(1, 12, shift=0.5)
    found = kernel_distance(first, second)
    assert found.value == pytest.approx(by_pairs(first, second), rel=1e-10)
    assert (found.subsets, found.subset_size, found.deviation) == (1, 12, 0.0)


def test_subsets_average_to_the_exact_estimate() -> None:
    """The exact estimate is computed here, the subsets by torch-fidelity."""
    first, second = features(0, 300), features(1, 300, shift=0.3)
    exact = kernel_distance(first, second, subset_size=300)
    assert (exact.subsets, exact.deviation) == (1, 0.0)
    many = kernel_distance(first, second, subsets=50, subset_size=100)
    assert many.value == pytest.approx(exact.value, abs=4 * many.deviation / 50**0.5) and many.deviation > 0


def test_one_subset_of_all_rows_is_the_exact_estimate() -> None:
    """Sets of two sizes: the subset is capped at the smaller one, whose rows are then all taken."""
    first, second = features(0, 12), np.repeat(features(1, 1, shift=0.5), 20, axis=0)
    found = kernel_distance(first, second, subsets=1, subset_size=1000)
    assert found.subset_size == 12
    assert found.value == pytest.approx(by_pairs(first, second[:12]), rel=1e-10)


def test_subsets_shrink_to_the_smaller_set_and_are_seeded() -> None:
    first, second = features(0, 30), features(1, 20)
    found = kernel_distance(first, second, subsets=5, seed=3)
    assert (found.subsets, found.subset_size) == (5, 20) and found.deviation > 0
    assert found == kernel_distance(first, second, subsets=5, seed=3)
    assert found != kernel_distance(first, second, subsets=5, seed=4)


def test_same_distribution_is_near_zero_and_noise_grows() -> None:
    rows = features(0, 400)
    values = [
        kernel_distance(rows, features(1, 400) * (1 + noise) + noise, subset_size=400).value
        for noise in (0.0, 0.3, 0.6, 1.0)
    ]
    assert abs(values[0]) < 0.05 and values == sorted(values) and values[1] > 0.05


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="at least 2 images"):
        kernel_distance(features(0, 1), features(1))
    with pytest.raises(UserError, match="shapes"):
        kernel_distance(features(0), features(1, dim=7))
    with pytest.raises(UserError, match="NaN"):
        kernel_distance(features(0), features(1) * np.nan)
