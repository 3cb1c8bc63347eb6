"""Private steps of Lloyd's k-means: cells whose centres follow the records, and spreads of groups of cells.

Cells that are found by k-means on draws of one Gaussian a class divide that Gaussian, not the records. A round that
releases count and mean difference of each cell moves the centres to where the records are (Blum et al. 2005, SuLQ; Su
et al. 2016). It has few numbers, so it costs little. The last round releases second moments around the final centres:
differences from many centres are short, which allows a small clip norm, and several cells share one matrix, which has
less noise than one for each cell. All of this is post-processing of releases and reads no record.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.privacy.statistics.gaussians import ClassMixture, denoised, factor, k_means, pooled, shrunk, towards
from ldm.privacy.statistics.moments import ClassMoments
from ldm.privacy.statistics.query import Release, clipped

DRAWS = 6000


def cell_groups(anchors: Tensor, groups: int, seed: int = 1) -> Tensor:
    """The group (classes, cells) int64 of each of the ``anchors`` (classes, cells, k): k-means on those of a class."""
    result = []
    for places in anchors.double():
        centres = k_means(places, groups, torch.Generator().manual_seed(seed))
        nearest = torch.cdist(places, centres).argmin(dim=1)
        result.append(torch.unique(nearest, return_inverse=True)[1])  # a centre without a cell is no group
    return torch.stack(result)


@dataclass(frozen=True)
class _Centres:
    """The cells after a release: noisy ``count`` (classes, cells), deviation ``std`` (classes, cells) of the noise on
    each number of ``raw``, the mean differences (classes, cells, k) from the old centres, and ``moved``, these without
    what noise explains.
    """

    count: Tensor
    std: Tensor
    raw: Tensor
    moved: Tensor

    @classmethod
    def of(cls, query: ClassMoments, release: Release) -> _Centres:
        a, b, _ = query.weights
        noise = release.noise_std
        count = (release.sums["count"] / a).clamp(min=noise / a)
        std = query.clip_norm * noise / (b * count)
        raw = query.clip_norm * release.sums["mean"] / (b * count)[..., None]
        return cls(count, std, raw, shrunk(raw, torch.zeros_like(raw[:, :1]), std))


def fit_centres(query: ClassMoments, release: Release, before: ClassMixture) -> ClassMixture:
    """The mixture after a release of counts and mean differences of cells: its means are the new centres.

    The cells of a class share the covariance that draws from ``before`` have around the new centres.
    """
    assert query.anchors is not None
    centres = _Centres.of(query, release)
    means = query.anchors.double() + centres.moved
    factors = []
    for label in range(query.classes):
        offsets = _around(before, label, means[label])
        factors.append(factor(offsets.T @ offsets / len(offsets)))
    total = centres.count.sum(dim=1)
    return ClassMixture(total / total.sum(), centres.count / total[:, None], means, torch.stack(factors)[:, None])


def fit_groups(query: ClassMoments, release: Release, before: ClassMixture, *, spread: bool = True) -> ClassMixture:
    """The mixture after a release of second moments of groups of cells: the cells of a group share a covariance.

    Clipping makes differences shorter; how much, is known from draws of ``before`` and made up for. ``spread``: see
    `fit_mixture`.
    """
    assert query.anchors is not None and query.groups is not None
    centres = _Centres.of(query, release)
    seconds = query.clip_norm**2 * query.matrices(release.sums["second"]) / query.weights[2]
    seconds = seconds.view(query.classes, query.matrices_per_class, query.rank, query.rank)
    entry = query.clip_norm**2 * release.noise_std / (query.weights[2] * math.sqrt(2.0))
    means, factors = [], []
    for label in range(query.classes):
        anchors, group = query.anchors[label].double(), query.groups[label]
        members, within = _within(seconds[label], centres, label, group)
        together, errors, error = pooled(within, members, entry)
        matrices = [
            denoised(*towards(matrix, together, own, error), spread=spread)
            for matrix, own in zip(within, errors, strict=True)
        ]
        growth = _growth(_around(before, label, anchors), query.clip_norm)
        factors.append(_filled([factor(growth * matrix) for matrix in matrices], query.matrices_per_class))
        means.append(anchors + math.sqrt(growth) * centres.moved[label])
    total = centres.count.sum(dim=1)
    weights = centres.count / total[:, None]
    return ClassMixture(total / total.sum(), weights, torch.stack(means), torch.stack(factors), query.groups)


def _filled(factors: list[Tensor], count: int) -> Tensor:
    """``factors`` (k, k) as (count, k, k), with zeros for the groups that other classes have and this one has not."""
    empty = torch.zeros_like(factors[0])
    return torch.stack([*factors, *[empty] * (count - len(factors))])


def _within(seconds: Tensor, centres: _Centres, label: int, group: Tensor) -> tuple[Tensor, Tensor]:
    """Noisy numbers of records (G,) and covariances (G, k, k) of a class's groups, around the released means of cells.

    The squares of these means are subtracted without the part that their noise adds to them.
    """
    used, count, raw = int(group.max()) + 1, centres.count[label], centres.raw[label]
    noise = centres.std[label].square()[:, None, None] * torch.eye(raw.shape[1], dtype=torch.float64)
    between = count[:, None, None] * (raw[:, :, None] * raw[:, None, :] - noise)
    members = torch.zeros(used, dtype=torch.float64).index_add_(0, group, count)
    sums = seconds[:used] - torch.zeros_like(seconds[:used]).index_add_(0, group, between)
    return members, sums / members[:, None, None]


def _around(mixture: ClassMixture, label: int, places: Tensor) -> Tensor:
    """Differences (N, k) of draws of a class from the nearest of ``places`` (cells, k)."""
    rows = mixture.draw(torch.full((DRAWS,), label), torch.Generator().manual_seed(1))
    return rows - places[torch.cdist(rows, places).argmin(dim=1)]


def _growth(offsets: Tensor, norm: float) -> float:
    """Mean squared length of differences (N, k) over that of the differences clipped to ``norm``."""
    return float(offsets.square().sum() / clipped(offsets, norm).square().sum().clamp(min=1e-12))
