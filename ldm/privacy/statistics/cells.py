"""Cells of a class in its leading directions, and the mixture that moments released in them describe.

A class's covariance is large in few directions, and what one Gaussian misses lies mostly in them. Noise on r x r
matrices is smaller than on all k x k ones, and every number is shrunk towards what the Gaussian itself predicts for its
cell, as far as noise explains the difference (empirical Bayes; Efron and Morris 1973). All of this is
post-processing of releases and reads no record.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.privacy.statistics.gaussians import ClassMixture, eigen, fit_mixture, k_means
from ldm.privacy.statistics.lloyd import fit_centres, fit_groups
from ldm.privacy.statistics.moments import ClassMoments
from ldm.privacy.statistics.query import Release

DRAWS = 6000
#: A variance is at least this share of the smallest one that the Gaussian of the class has in the leading directions.
LEAST_VARIANCE = 0.05
#: Cells differ from the Gaussian only if the sum of squared differences is this many deviations above that of noise.
SIGNIFICANT = 2.0


def leading_cells(before: ClassMixture, cells: int, rank: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Anchors (classes, cells, k) and the ``rank`` leading principal directions (classes, k, rank) of each class.

    The anchors are centres of k-means on draws from ``before`` in these directions, and the class mean in all others.
    """
    generator = torch.Generator().manual_seed(seed)
    anchors, bases = [], []
    for label in range(before.classes):
        mean, _, vectors = principal(before, label)
        basis = vectors[:, -rank:]
        rows = (before.draw(torch.full((DRAWS,), label), generator) - mean) @ basis
        places = k_means(rows, cells, generator)
        anchors.append(mean + places @ basis.T)
        bases.append(basis)
    return torch.stack(anchors), torch.stack(bases)


def principal(mixture: ClassMixture, label: int) -> tuple[Tensor, Tensor, Tensor]:
    """The mean (k,) of a class, the eigenvalues (k,) of its covariance in rising order, and its eigenvectors (k, k)."""
    weights, places = mixture.weights[label], mixture.means[label]
    mean = weights @ places
    factors = mixture.factors_of_cells(label)
    offsets = places - mean
    covariance = torch.einsum("c,cij,ckj->ik", weights, factors, factors)
    covariance = covariance + torch.einsum("c,ci,ck->ik", weights, offsets, offsets)
    return mean, *eigen(covariance)


@dataclass(frozen=True)
class _Expected:
    """What draws from the earlier mixture give for the cells of one class, with the clipping of the query.

    ``means`` (cells, r) and ``seconds`` (cells, r, r) of clipped differences; ``growth`` (cells,) is the mean squared
    length of the differences over that of the clipped ones.
    """

    means: Tensor
    seconds: Tensor
    growth: Tensor

    @classmethod
    def of(cls, before: ClassMixture, label: int, anchors: Tensor, basis: Tensor, norm: float) -> _Expected:
        rows = before.draw(torch.full((DRAWS,), label), torch.Generator().manual_seed(1)) @ basis
        places = anchors @ basis
        nearest = torch.cdist(rows, places).argmin(dim=1)
        whole = rows - places[nearest]
        short = whole * (norm / whole.norm(dim=1).clamp(min=1e-12)).clamp(max=1)[:, None]
        cells, r = places.shape
        means, seconds = torch.zeros(cells, r, dtype=torch.float64), torch.zeros(cells, r, r, dtype=torch.float64)
        growth = torch.ones(cells, dtype=torch.float64)
        for cell in nearest.unique().tolist():
            own = short[nearest == cell]
            means[cell], seconds[cell] = own.mean(dim=0), own.T @ own / len(own)
            growth[cell] = whole[nearest == cell].square().sum() / own.square().sum().clamp(min=1e-12)
        return cls(means, seconds, growth)


def fit_round(
    query: ClassMoments, release: Release, before: ClassMixture | None, *, spread: bool = True
) -> ClassMixture:
    """The mixture after a round.

    By `fit_leading` for a query with a basis, by `fit_groups` for one with groups of cells, by `fit_centres` for one of
    cells without second moments, by `fit_mixture` for all others. All but the last need the mixture ``before``.
    """
    centres_alone = query.centred and query.cells > 1 and not query.weights[2]
    if query.basis is None and query.groups is None and not centres_alone:
        return fit_mixture(query, release, spread=spread)
    if before is None:
        raise ValueError("cells of a class need the mixture that they come from")
    if query.basis is not None:
        return fit_leading(query, release, before)
    if query.groups is not None:
        return fit_groups(query, release, before, spread=spread)
    return fit_centres(query, release, before)


def fit_leading(query: ClassMoments, release: Release, before: ClassMixture) -> ClassMixture:
    """The mixture of ``before`` with the cells that ``query`` released in the leading directions of each class.

    Outside these directions a cell has the mean and covariance of its class.
    """
    assert query.basis is not None and query.anchors is not None
    a, b, c = query.weights
    radius, noise, r = query.clip_norm, release.noise_std, query.rank
    count = (release.sums["count"] / a).clamp(min=noise / a)
    sums = query.matrices(release.sums["second"]).view(query.classes, query.cells, r, r)
    means, factors = [], []
    for label in range(query.classes):
        anchors, basis = query.anchors[label].double(), query.basis[label].double()
        _, values, vectors = principal(before, label)
        expected = _Expected.of(before, label, anchors, basis, radius)
        own = count[label][:, None]
        mean = _mean(radius * release.sums["mean"][label] / (b * own), radius * noise / (b * own), expected.means)
        second = radius**2 * sums[label] / (c * own[..., None])
        error = radius**2 * noise / (c * math.sqrt(2.0) * own[..., None])
        second = _second(second, error, expected.seconds, values[-r:])
        covariances = (second - mean[:, :, None] * mean[:, None, :]) * expected.growth[:, None, None]
        rest = vectors[:, :-r] * values[:-r].clamp(min=0).sqrt()
        least = LEAST_VARIANCE * float(values[-r])
        means.append(anchors + (mean * expected.growth.sqrt()[:, None]) @ basis.T)
        factors.append(torch.stack([_factor(matrix, least, basis, rest) for matrix in covariances]))
    total = count.sum(dim=1)
    return ClassMixture(total / total.sum(), count / total[:, None], torch.stack(means), torch.stack(factors))


def _mean(raw: Tensor, error: Tensor, expected: Tensor) -> Tensor:
    """Cell means (cells, r) with noise ``error`` (cells, 1), shrunk towards the expected ones."""
    cells, r = raw.shape
    offset = raw - expected
    variance = error.square().expand(cells, r)
    excess = float((offset.square() - variance).sum())
    if excess <= SIGNIFICANT * math.sqrt(2 * float(variance.square().sum())):
        return expected
    spread = excess / (cells * r)
    return expected + spread / (spread + variance) * offset


def _second(raw: Tensor, error: Tensor, expected: Tensor, variances: Tensor) -> Tensor:
    """Second moments (cells, r, r), off-diagonal noise ``error`` (cells, 1, 1), shrunk towards the expected ones.

    The prior deviation of entry i, j is tau sqrt(v_i v_j) with the class's ``variances`` v (r,); tau² comes from all
    cells of the class by weighted moments.
    """
    offset, r = raw - expected, len(variances)
    scale = (variances[:, None] * variances[None, :]).clamp(min=1e-12)
    noise = error.square() * (1 + torch.eye(r, dtype=torch.float64))
    against_noise = scale / noise.square()  # the weights for a small tau
    excess = float((against_noise * (offset.square() - noise)).sum())
    # both triangles have the same noise: twice the variance of as many independent entries
    if excess <= SIGNIFICANT * math.sqrt(4 * float((against_noise * noise).square().sum())):
        return expected
    tau = 1.0
    for _ in range(30):
        weight = (scale / (tau * scale + noise)).square()
        tau = max(float((weight * (offset.square() - noise) / scale).sum() / weight.sum()), 1e-6)
    return expected + tau * scale / (tau * scale + noise) * offset


def _factor(covariance: Tensor, least: float, basis: Tensor, rest: Tensor) -> Tensor:
    """F (k, k), F Fᵀ = basis covariance basisᵀ + rest restᵀ; eigenvalues of the first part are at least ``least``."""
    values, vectors = eigen(covariance)
    return torch.cat([rest, basis @ (vectors * values.clamp(min=max(least, 1e-12)).sqrt())], dim=1)
