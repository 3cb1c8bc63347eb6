"""Precision, recall, density and coverage against the loops of their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from ldm.errors import UserError
from ldm.evaluation.metrics.manifold import ManifoldScores, manifold_scores


def rows(seed: int, count: int = 60, dim: int = 3, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)) + shift


def by_loops(real: np.ndarray, generated: np.ndarray, k: int, k_density: int) -> ManifoldScores:
    """The slow, obvious twin."""

    def distance(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.linalg.norm(a - b))

    def radius(points: np.ndarray, i: int, neighbours: int) -> float:
        return sorted(distance(points[i], points[j]) for j in range(len(points)) if j != i)[neighbours - 1]

    real_k = [radius(real, i, k) for i in range(len(real))]
    real_d = [radius(real, i, k_density) for i in range(len(real))]
    made_k = [radius(generated, j, k) for j in range(len(generated))]
    inside = [[distance(m, r) <= real_d[i] for i, r in enumerate(real)] for m in generated]
    return ManifoldScores(
        float(np.mean([any(distance(m, r) <= real_k[i] for i, r in enumerate(real)) for m in generated])),
        float(np.mean([any(distance(m, r) <= made_k[j] for j, m in enumerate(generated)) for r in real])),
        float(np.sum(inside) / (k_density * len(generated))),
        float(np.mean(np.any(inside, axis=0))),
        k,
        k_density,
        len(real),
        len(generated),
    )


@pytest.mark.parametrize("block", [7, 1024])
@pytest.mark.parametrize(("k", "k_density"), [(3, 5), (1, 2)])
def test_equals_the_loops(block: int, k: int, k_density: int) -> None:
    real, generated = rows(0), rows(1, 45, shift=0.7)
    found, expected = (
        manifold_scores(real, generated, k=k, k_density=k_density, block=block),
        by_loops(real, generated, k, k_density),
    )
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-12), name
    assert (found.real, found.generated) == (60, 45)
    assert 0 < found.recall < 1 and 0 < found.precision < 1


def test_a_set_against_itself_is_perfect_even_with_copies_in_it() -> None:
    points = np.concatenate([rows(0, 30), np.repeat(rows(2, 1), 8, axis=0)]).astype(np.float32) + 100
    found = manifold_scores(points, points)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1) and found.density >= 1


def test_what_each_number_sees() -> None:
    real = np.concatenate([rows(0, 100), rows(1, 100, shift=20)])
    one_mode = manifold_scores(real, rows(2, 100))
    assert one_mode.precision > 0.8 and 0.3 < one_mode.recall < 0.6 and 0.3 < one_mode.coverage < 0.6
    far = manifold_scores(real, rows(2, 100, shift=-50))
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)


def test_a_few_outliers_raise_recall_more_than_coverage() -> None:
    """Why density and coverage stand beside precision and recall."""
    real = rows(0, 200)
    generated = np.concatenate([rows(1, 100) * 0.05, rows(2, 8) * 20])
    found = manifold_scores(real, generated)
    assert found.recall > 0.9 and found.coverage < 0.6


def test_too_few_points_and_bad_values_are_named() -> None:
    with pytest.raises(UserError, match="5 real images are too few for 5 neighbours; at least 6"):
        manifold_scores(rows(0, 5), rows(1))
    with pytest.raises(UserError, match="3 generated images"):
        manifold_scores(rows(0), rows(1, 3))
    with pytest.raises(UserError, match="NaN"):
        manifold_scores(rows(0), rows(1) * np.inf)
    with pytest.raises(UserError, match="at least 1"):
        manifold_scores(rows(0), rows(1), k=0)
