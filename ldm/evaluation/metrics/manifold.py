"""Precision and recall, density and coverage: how far the supports of two feature sets overlap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from ldm.errors import UserError
from ldm.evaluation.metrics.kid import checked_features

#: Squared distances below this share of the largest squared norm are rounding errors, not distances.
ROUNDING = 1e-12


@dataclass(frozen=True)
class ManifoldScores:
    """precision, recall and coverage lie in [0, 1], density in [0, inf) with expectation 1 for equal distributions.

    k and k_density are the neighbours that define the balls; real and made are the numbers of images compared.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    k: int
    k_density: int
    real: int
    made: int


def manifold_scores(
    real: Tensor | NDArray[Any],
    made: Tensor | NDArray[Any],
    *,
    k: int = 3,
    k_density: int = 5,
    block: int = 1024,
    device: torch.device | str = "cpu",
) -> ManifoldScores:
    """Compare features real (N, D) and made (M, D) by the balls that reach to each point's k-th neighbour of its set.

    precision: share of generated points inside some real ball; recall: share of real points inside some generated ball
    (k; Kynkaanniemi et al. 2019, eq. 1-3). density: mean number of real balls around a generated point, over k_density;
    coverage: share of real balls that hold a generated point (k_density; Naeem et al. 2020, eq. 6-7).
    A point on a ball's edge is inside. Distances are taken `block` rows at a time in float64.
    Raises UserError when a set has too few points for its neighbours, or features cannot be compared.
    """
    real, made = checked_features(real, made, device)
    if k < 1 or k_density < 1 or block < 1:
        raise UserError(f"neighbours {k} and {k_density} and block {block} must be at least 1")
    for name, rows, needed in (("real", real, max(k, k_density)), ("generated", made, k)):
        if len(rows) <= needed:
            raise UserError(
                f"{len(rows)} {name} images are too few for {needed} neighbours; at least {needed + 1} needed"
            )
    centre = real.mean(dim=0)  # distances do not change and lose fewer digits
    real, made = real - centre, made - centre
    slack = ROUNDING * float(torch.cat([real, made]).square().sum(dim=1).max())
    real_k, real_density = (radii + slack for radii in _radii(real, (k, k_density), block))
    made_k = _radii(made, (k,), block)[0] + slack

    precise, inside = 0, 0
    recalled = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    covered = torch.zeros_like(recalled)
    for start in range(0, len(made), block):
        distances = _squared_distances(made[start : start + block], real)
        precise += int((distances <= real_k).any(dim=1).sum())
        in_ball = distances <= real_density
        inside += int(in_ball.sum())
        covered |= in_ball.any(dim=0)
        recalled |= (distances <= made_k[start : start + block, None]).any(dim=0)
    return ManifoldScores(
        precision=precise / len(made),
        recall=float(recalled.double().mean()),
        density=inside / (k_density * len(made)),
        coverage=float(covered.double().mean()),
        k=k,
        k_density=k_density,
        real=len(real),
        made=len(made),
    )


def _squared_distances(first: Tensor, second: Tensor) -> Tensor:
    norms = first.square().sum(dim=1)[:, None] + second.square().sum(dim=1)
    return (norms - 2 * first @ second.T).clamp(min=0)


def _radii(rows: Tensor, ks: tuple[int, ...], block: int) -> list[Tensor]:
    """Squared distance of every row to its k-th nearest other row, (N,) for each k."""
    parts = []
    for start in range(0, len(rows), block):
        distances = _squared_distances(rows[start : start + block], rows)
        itself = torch.arange(len(distances), device=rows.device)
        distances[itself, itself + start] = torch.inf
        parts.append(distances.topk(max(ks), dim=1, largest=False, sorted=True).values)
    nearest = torch.cat(parts)
    return [nearest[:, k - 1] for k in ks]
