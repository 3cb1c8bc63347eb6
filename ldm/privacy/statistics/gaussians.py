"""`ClassMixture`: the distribution of each class, from released moments. This is post-processing and reads no record.

The noise has a known size, and every estimate is corrected for it: cells with too few records are dropped, means and
covariances are shrunk by the positive-part rule of James and Stein (1961) towards values shared by the classes, and
eigenvalues within the range of a pure-noise symmetric matrix are cut, larger ones shrunk (Wigner's edge;
Benaych-Georges and Nadakuditi 2011 for the shift of those above it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.privacy.statistics.moments import ClassMoments
from ldm.privacy.statistics.query import Release

#: A cell is used if its noisy count is at least this many standard deviations of the noise.
FEWEST = 3.0


@dataclass(frozen=True, eq=False)  # tensors have no single truth value
class ClassMixture:
    """A mixture of Gaussians a class, in the coordinates of a frame.

    ``shares`` (classes,) of the records; ``weights`` (classes, cells), rows sum to 1; ``means`` (classes, cells, k);
    ``factors`` (classes, m, k, k), F with covariance F Fᵀ. m is 1 or the number of cells; with ``groups`` (classes,
    cells) int64 it is any number, and a cell has the factor that its entry names.
    """

    shares: Tensor
    weights: Tensor
    means: Tensor
    factors: Tensor
    groups: Tensor | None = None

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.weights.shape[0]

    def draw(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Coordinates (N, k) float64 drawn for ``labels`` (N,)."""
        cell = torch.multinomial(self.weights[labels], 1, generator=generator)[:, 0]
        noise = torch.randn(len(labels), self.means.shape[2], generator=generator, dtype=torch.float64)
        result = self.means[labels, cell].clone()
        group = labels * self.factors.shape[1] + self._which()[labels, cell]
        flat = self.factors.flatten(0, 1)
        for which in group.unique().tolist():
            members = group == which
            result[members] += noise[members] @ flat[which].T
        return result

    def _which(self) -> Tensor:
        """The number of each cell's factor (classes, cells) among those of its class."""
        if self.groups is not None:
            return self.groups
        each = torch.arange(self.weights.shape[1]) if self.factors.shape[1] > 1 else torch.zeros(1, dtype=torch.long)
        return each.expand(self.weights.shape)

    def factors_of_cells(self, label: int) -> Tensor:
        """The factor (cells, k, k) of each cell of a class."""
        return self.factors[label][self._which()[label]]

    def centres(self, cells: int, seed: int = 0, draws: int = 4000, rounds: int = 20) -> Tensor:
        """``cells`` anchors a class (classes, cells, k): k-means on draws from this mixture.

        One anchor is the mean of the class.
        """
        if cells == 1:
            return torch.einsum("gc,gck->gk", self.weights, self.means)[:, None]
        generator = torch.Generator().manual_seed(seed)
        result = []
        for label in range(self.classes):
            rows = self.draw(torch.full((draws,), label), generator)
            result.append(k_means(rows, cells, generator, rounds))
        return torch.stack(result)

    def radius(self, anchors: Tensor, basis: Tensor | None = None, seed: int = 0, draws: int = 2000) -> float:
        """The median distance of draws from the nearest of their class's ``anchors`` (classes, cells, k).

        With a ``basis`` (classes, k, r), the distance in these directions of each class.
        It is a clip norm of centred moments: it comes from released numbers and reads no record. Three digits of it
        are returned, so that another machine's rounding does not change a run's constants.
        """
        generator = torch.Generator().manual_seed(seed)
        distances = []
        for label in range(self.classes):
            rows, places = self.draw(torch.full((draws,), label), generator), anchors[label].double()
            if basis is not None:
                rows, places = rows @ basis[label], places @ basis[label]
            distances.append(torch.cdist(rows, places).amin(dim=1))
        return float(f"{float(torch.cat(distances).median()):.3g}")


def k_means(rows: Tensor, cells: int, generator: torch.Generator, rounds: int = 20) -> Tensor:
    """Centres (cells, k) of k-means (Lloyd 1982) on rows (N, k), started at ``cells`` of them."""
    places = rows[torch.randperm(len(rows), generator=generator)[:cells]].clone()
    for _ in range(rounds):
        nearest = torch.cdist(rows, places).argmin(dim=1)
        for cell in nearest.unique().tolist():
            places[cell] = rows[nearest == cell].mean(dim=0)
    return places


def fit_mixture(query: ClassMoments, release: Release, *, spread: bool = True) -> ClassMixture:
    """The mixture that a release of ``query`` describes, corrected for the noise on it.

    With ``spread``, directions with a variance below the noise get the average remaining variance by the trace, which
    is known far better than any eigenvalue; without it they get none.
    """
    a, b, c = query.weights
    radius, noise, k = query.clip_norm, release.noise_std, query.frame.rank
    count = release.sums["count"] / a
    usable = count > FEWEST * noise / a
    usable[torch.arange(query.classes), count.argmax(dim=1)] = True
    count = torch.where(usable, count, 0.0).clamp(min=0)
    count = torch.where(usable, count.clamp(min=noise / a), count)
    total = count.sum(dim=1)
    weights = count / total[:, None]
    mean_std = radius * noise / (b * count.clamp(min=1.0)) if b else torch.zeros_like(count)
    raw = (
        radius * release.sums["mean"] / (b * count.clamp(min=1.0))[..., None]
        if b
        else torch.zeros_like(release.sums["mean"])
    )
    raw = torch.where(usable[..., None], raw, 0.0)
    means = _means(query, raw, weights, mean_std)
    means = torch.where(usable[..., None], means, 0.0)
    if not c:
        factors = torch.zeros(query.classes, 1, k, k, dtype=torch.float64)
        return ClassMixture(total / total.sum(), weights, means, factors)
    second = radius**2 * query.matrices(release.sums["second"]) / c
    entry = radius**2 * noise / (c * math.sqrt(2.0))  # standard deviation off the diagonal of a sum
    if query.second_by_cell:
        factors = _by_cell(second.view(query.classes, query.cells, k, k), entry, count, raw, mean_std, spread)
        return ClassMixture(total / total.sum(), weights, means, factors)
    # the noise on the means makes their subtracted squares too large; add the excess back
    between = torch.einsum("gc,gci,gcj->gij", weights, raw, raw)
    excess = (weights * mean_std.square()).sum(dim=1)[:, None, None] * torch.eye(k, dtype=torch.float64)
    within = second / total[:, None, None] - between + excess
    shared, errors, shared_error = pooled(within, total, entry)
    matrices = [
        denoised(*towards(within[g], shared, errors[g], shared_error), spread=spread) for g in range(query.classes)
    ]
    return ClassMixture(total / total.sum(), weights, means, torch.stack([factor(m) for m in matrices])[:, None])


def _means(query: ClassMoments, raw: Tensor, weights: Tensor, std: Tensor) -> Tensor:
    """Cell means (classes, cells, k) from the released ones, whose noise ``std`` is known.

    Centred ones are shrunk towards their anchors, others towards the mean of their class.
    """
    if query.centred:
        assert query.anchors is not None
        return query.anchors.double() + shrunk(raw, torch.zeros_like(raw[:, :1]), std)
    if query.cells == 1:
        return raw
    return shrunk(raw, torch.einsum("gc,gck->gk", weights, raw)[:, None], std)


def shrunk(raw: Tensor, centre: Tensor, std: Tensor) -> Tensor:
    """Means (classes, cells, k), shrunk towards ``centre`` as far as their noise explains the distance."""
    distance = (raw - centre).square().sum(dim=2)
    keep = (1 - raw.shape[2] * std.square() / distance.clamp(min=1e-12)).clamp(0, 1)
    return centre + keep[..., None] * (raw - centre)


def pooled(matrices: Tensor, count: Tensor, entry: float) -> tuple[Tensor, Sequence[float], float]:
    """The mean of class covariances weighted by counts; the off-diagonal noise of each, and of the mean."""
    shared = torch.einsum("g,gij->ij", count, matrices) / count.sum()
    errors = (entry / count).tolist()
    return shared, errors, entry * math.sqrt(len(count)) / float(count.sum())


def towards(matrix: Tensor, shared: Tensor, error: float, shared_error: float) -> tuple[Tensor, float]:
    """A matrix shrunk towards the shared one as far as noise explains its distance, and its remaining noise."""
    k = len(matrix)
    distance = float((matrix - shared).square().sum())
    explained = k * (k + 1) * max(error**2 - shared_error**2, 0.0)
    keep = max(0.0, 1 - explained / max(distance, 1e-30))
    left = math.sqrt((keep * error) ** 2 + ((1 - keep) * shared_error) ** 2)
    return shared + keep * (matrix - shared), left


def denoised(matrix: Tensor, error: float, *, spread: bool = True, rounds: int = 10) -> Tensor:
    """A covariance (k, k) out of one with symmetric Gaussian noise, ``error`` its deviation off the diagonal.

    Around a level l such noise alone has eigenvalues within 2 ``error`` sqrt(k). An eigenvalue l + x above came from l
    + (x + sqrt(x² - 4 k error²)) / 2; those below become l, the average of the remaining trace, or 0 without
    ``spread``.
    """
    k = len(matrix)
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    edge, total, level = 2 * error * math.sqrt(k), float(torch.trace(matrix)), 0.0
    if spread:
        level = max(float(values.median()), 0.0)
    for _ in range(rounds if spread else 1):
        above = values - level
        kept = above > edge
        lifted = level + (above + (above.square() - edge**2).clamp(min=0).sqrt()) / 2
        if spread and not kept.all():
            level = max((total - float(lifted[kept].sum())) / int((~kept).sum()), 0.0)
    result = torch.where(kept, lifted, level).clamp(min=0)
    return (vectors * result) @ vectors.T


def eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (k,) of a symmetric matrix in rising order, and eigenvectors (k, k) in columns.

    The largest entry of each eigenvector is positive: its sign would otherwise depend on the machine, and with it the
    draws and cells of a run that is resumed on another one.
    """
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    return values, vectors * largest.sign()


def factor(covariance: Tensor) -> Tensor:
    """F (k, k) with F Fᵀ the covariance, whose negative eigenvalues become 0."""
    values, vectors = eigen(covariance)
    return vectors * values.clamp(min=0).sqrt()


def _by_cell(second: Tensor, entry: float, count: Tensor, raw: Tensor, std: Tensor, spread: bool) -> Tensor:
    """Factors (classes, cells, k, k) of covariances released for each cell, shrunk towards their class's."""
    classes, cells, k, _ = second.shape
    eye = torch.eye(k, dtype=torch.float64)
    result = torch.zeros_like(second)
    for g in range(classes):
        used = [cell for cell in range(cells) if count[g, cell] > 0]
        within = torch.stack(
            [
                second[g, cell] / count[g, cell] - torch.outer(raw[g, cell], raw[g, cell]) + std[g, cell] ** 2 * eye
                for cell in used
            ]
        )
        shared, errors, shared_error = pooled(within, count[g, used], entry)
        for place, cell in enumerate(used):
            matrix = denoised(*towards(within[place], shared, errors[place], shared_error), spread=spread)
            result[g, cell] = factor(matrix)
    return result
