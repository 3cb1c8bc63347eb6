"""The Fréchet distance against closed forms and two independent programs."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ldm.errors import UserError
from ldm.evaluation.metrics.frechet import frechet_distance


def gaussian(seed: int, dim: int = 12, rows: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(rows, dim)) @ rng.normal(size=(dim, dim)) + rng.normal(size=dim)
    return features.mean(axis=0), np.cov(features, rowvar=False)


def by_scipy(mu1, sigma1, mu2, sigma2) -> float:
    root = scipy.linalg.sqrtm(sigma1 @ sigma2).real
    return float(np.sum((mu1 - mu2) ** 2) + np.trace(sigma1 + sigma2 - 2 * root))


def test_closed_form_for_commuting_covariances() -> None:
    mu1, mu2 = np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 0.0])
    sd1, sd2 = np.array([1.0, 2.0, 3.0]), np.array([4.0, 0.0, 1.0])
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    expected = np.sum((mu1 - mu2) ** 2) + np.sum((sd1 - sd2) ** 2)
    found = frechet_distance(mu1, rotation * sd1**2 @ rotation.T, mu2, rotation * sd2**2 @ rotation.T)
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_scipy_and_torch_fidelity(seed: int) -> None:
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    first, second = gaussian(seed), gaussian(seed + 100)
    found = frechet_distance(*first, *second)
    stats = [dict(zip(("mu", "sigma"), pair, strict=True)) for pair in (first, second)]
    assert found == pytest.approx(by_scipy(*first, *second), abs=1e-3)
    assert found == pytest.approx(fid_statistics_to_metric(*stats, False)["frechet_inception_distance"], abs=1e-3)


def test_same_set_is_zero_even_when_singular() -> None:
    mu, sigma = gaussian(0, dim=64, rows=10)
    assert frechet_distance(mu, sigma, mu, sigma) <= 1e-9 * np.trace(sigma)


def test_rank_deficient_covariances_of_disjoint_spaces() -> None:
    first, second = np.diag([4.0, 0.0]), np.diag([0.0, 9.0])
    assert frechet_distance(np.zeros(2), first, np.zeros(2), second) == pytest.approx(13.0)


def test_grows_with_noise() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(500, 8))
    reference = features.mean(axis=0), np.cov(features, rowvar=False)
    distances = []
    for sd in (0.0, 0.2, 0.5, 1.0, 2.0):
        noisy = features + sd * rng.normal(size=features.shape)
        distances.append(frechet_distance(*reference, noisy.mean(axis=0), np.cov(noisy, rowvar=False)))
    assert distances == sorted(distances) and distances[0] < 1e-9 < distances[1]


@settings(max_examples=50, deadline=None)
@given(arrays(np.float64, (2, 6, 4), elements=st.floats(-1e6, 1e6)))
def test_never_negative_never_nan_and_symmetric(features: np.ndarray) -> None:
    first, second = ((rows.mean(axis=0), np.cov(rows, rowvar=False)) for rows in features)
    there, back = frechet_distance(*first, *second), frechet_distance(*second, *first)
    scale = 1 + np.trace(first[1]) + np.trace(second[1]) + np.abs(features).max() ** 2
    assert there >= 0 and np.isfinite(there)
    assert there == pytest.approx(back, abs=1e-6 * scale)


def test_mistakes_are_named() -> None:
    one, eye = np.zeros(3), np.eye(3)
    with pytest.raises(UserError, match="same features"):
        frechet_distance(one, eye, np.zeros(2), np.eye(2))
    with pytest.raises(UserError, match="covariances have shapes"):
        frechet_distance(one, eye, one, np.eye(2))
    with pytest.raises(UserError, match="NaN"):
        frechet_distance(one, eye, one, eye * np.nan)
