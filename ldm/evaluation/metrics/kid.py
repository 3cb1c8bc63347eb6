"""Kernel Inception Distance: the squared maximum mean discrepancy of features under a cubic polynomial kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from ldm.errors import UserError

DEGREE = 3


@dataclass(frozen=True)
class KernelDistance:
    """Mean and standard deviation (0 for a single subset) of the estimate over `subsets` draws of `subset_size`."""

    value: float
    deviation: float
    subsets: int
    subset_size: int


def kernel_distance(
    real: Tensor | NDArray[Any],
    generated: Tensor | NDArray[Any],
    *,
    subsets: int = 100,
    subset_size: int = 1000,
    seed: int = 0,
) -> KernelDistance:
    """Unbiased squared MMD with kernel (x.y / D + 1)^3, averaged over random subsets by torch-fidelity, on the CPU.

    real (N, D), generated (M, D): features. A subset is never larger than the smaller set. When both sets have
    exactly the subset's size, there is one exact estimate on all rows, without a deviation. An estimate may be
    negative. The estimate of a set against itself is negative, since only the cross term includes each row paired
    with itself.
    Raises UserError below two rows, for different widths or non-finite values. Binkowski et al. 2018, section 4.
    """
    real, generated = checked_features(real, generated)
    size = min(subset_size, len(real), len(generated))
    if size < 2 or subsets < 1:
        raise UserError(
            f"KID needs at least 2 images on both sides and 1 subset; there are {len(real)} and {len(generated)}"
            f" images, subsets of {subset_size}, {subsets} times"
        )
    if size == len(real) == len(generated):
        return KernelDistance(polynomial_mmd(real, generated), 0.0, 1, size)
    found = kid_features_to_metric(
        real,
        generated,
        kid_subsets=subsets,
        kid_subset_size=size,
        kid_kernel_poly_degree=DEGREE,
        rng_seed=seed,
        verbose=False,
    )
    return KernelDistance(found[KEY_METRIC_KID_MEAN], found[KEY_METRIC_KID_STD], subsets, size)


def polynomial_mmd(first: Tensor, second: Tensor) -> float:
    """The unbiased estimate on all rows of two (N, D) and (M, D) float64 tensors, both of at least two rows."""
    within_first, within_second = _kernel(first, first), _kernel(second, second)
    n, m = len(first), len(second)
    estimate = (within_first.sum() - within_first.diagonal().sum()) / (n * (n - 1))
    estimate += (within_second.sum() - within_second.diagonal().sum()) / (m * (m - 1))
    return float(estimate - 2 * _kernel(first, second).mean())


def _kernel(first: Tensor, second: Tensor) -> Tensor:
    return (first @ second.T / first.shape[1] + 1) ** DEGREE


def checked_features(
    real: Tensor | NDArray[Any], generated: Tensor | NDArray[Any], device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Both feature sets as float64 tensors on `device`; raises UserError when they cannot be compared."""
    first, second = (torch.as_tensor(rows).to(device, torch.float64) for rows in (real, generated))
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise UserError(
            f"features have shapes {tuple(first.shape)} and {tuple(second.shape)}; expected (N, D) and (M, D)"
        )
    if not (torch.isfinite(first).all() and torch.isfinite(second).all()):
        raise UserError("the features hold NaN or infinite values; check the images and the extractor's weights")
    return first, second
