"""The Fréchet distance between two Gaussians given by mean and covariance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ldm.errors import UserError

Array = NDArray[np.float64]


def frechet_distance(mu1: Array, sigma1: Array, mu2: Array, sigma2: Array) -> float:
    """|mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2)), never negative and never NaN.

    mu: (D,), sigma: (D, D) symmetric positive semi-definite (rank-deficient is fine), squared feature units.
    The trace of the root equals the sum of the singular values of sigma1^(1/2) sigma2^(1/2). Both roots come from
    symmetric eigen-decompositions, so all values stay real. The root of the product of covariances is never taken, so
    the distance of a set to itself stays at rounding error even when sigma is singular.
    Raises UserError for shapes that do not fit or non-finite input. Dowson and Landau 1982, eq. 4; Heusel et al. 2017.
    """
    mu1, mu2 = np.asarray(mu1, np.float64), np.asarray(mu2, np.float64)
    sigma1, sigma2 = np.asarray(sigma1, np.float64), np.asarray(sigma2, np.float64)
    if mu1.ndim != 1 or mu1.shape != mu2.shape:
        raise UserError(f"means have shapes {mu1.shape} and {mu2.shape}; the two sets need the same features")
    expected = (len(mu1), len(mu1))
    if sigma1.shape != expected or sigma2.shape != expected:
        raise UserError(f"covariances have shapes {sigma1.shape} and {sigma2.shape}; expected {expected}")
    if not all(np.isfinite(array).all() for array in (mu1, mu2, sigma1, sigma2)):
        raise UserError("the statistics hold NaN or infinite values; compute them again from valid images")
    root_trace = np.linalg.svd(_symmetric_root(sigma1) @ _symmetric_root(sigma2), compute_uv=False).sum()
    distance = np.square(mu1 - mu2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * root_trace
    return float(max(distance, 0.0))


def _symmetric_root(sigma: Array) -> Array:
    values, vectors = np.linalg.eigh((sigma + sigma.T) / 2)
    return (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
