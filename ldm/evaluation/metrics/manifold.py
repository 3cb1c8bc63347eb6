"""Precision and recall, density and coverage: how far the supports of two feature sets overlap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from ldm.errors import UserError
from ldm.evaluation.metrics.kid import checked_features

#: Squared distances below this share of the largest squared norm are rounding errors, not distances.
ROUNDING = 1e-12


@dataclass(frozen=True)
class ManifoldScores:
    """precision, recall and coverage lie in [0, 1], density in [0, inf) with expectation 1 for equal distributions.

    k and k_density: numbers of neighbours that define the balls; real and generated: numbers of images compared.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    k: int
    k_density: int
    real: int
    generated: int


def manifold_scores(
    real: Tensor | NDArray[Any],
    generated: Tensor | NDArray[Any],
    *,
    k: int = 3,
    k_density: int = 5,
    block: int = 1024,
    device: torch.device | str = "cpu",
) -> ManifoldScores:
    """Compare features real (N, D) and generated (M, D) by balls whose radius is the distance to the k-th neighbour.

    precision: share of generated points inside some real ball; recall: share of real points inside some generated ball
    (k; Kynkaanniemi et al. 2019, eq. 1-3; computed by torch-fidelity). density: mean number of real balls around a
    generated point, over k_density; coverage: share of real balls that hold a generated point (k_density; Naeem et al.
    2020, eq. 6-7). A point on a ball's edge is inside. Distances are taken `block` rows at a time in float64.
    Raises UserError when a set has too few points for its neighbours, or features cannot be compared.
    """
    real, generated = checked_features(real, generated, device)
    if k < 1 or k_density < 1 or block < 1:
        raise UserError(f"neighbours {k} and {k_density} and block {block} must be at least 1")
    for name, rows, needed in (("real", real, max(k, k_density)), ("generated", generated, k)):
        if len(rows) <= needed:
            raise UserError(
                f"{len(rows)} {name} images are too few for {needed} neighbours; at least {needed + 1} needed"
            )
    centre = real.mean(dim=0)  # centred features have the same distances with less rounding error
    real, generated = real - centre, generated - centre
    found = prc_features_to_metric(
        generated, real, prc_neighborhood=k, prc_batch_size=block, save_cpu_ram=True, verbose=False
    )
    slack = ROUNDING * float(torch.cat([real, generated]).square().sum(dim=1).max())
    radii = _radii(real, k_density, block) + slack

    inside = 0
    covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for start in range(0, len(generated), block):
        in_ball = _squared_distances(generated[start : start + block], real) <= radii
        inside += int(in_ball.sum())
        covered |= in_ball.any(dim=0)
    return ManifoldScores(
        # torch-fidelity averages in float32; a share of n images is a multiple of 1/n
        precision=round(found[KEY_METRIC_PRECISION] * len(generated)) / len(generated),
        recall=round(found[KEY_METRIC_RECALL] * len(real)) / len(real),
        density=inside / (k_density * len(generated)),
        coverage=float(covered.double().mean()),
        k=k,
        k_density=k_density,
        real=len(real),
        generated=len(generated),
    )


def _squared_distances(first: Tensor, second: Tensor) -> Tensor:
    norms = first.square().sum(dim=1)[:, None] + second.square().sum(dim=1)
    return (norms - 2 * first @ second.T).clamp(min=0)


def _radii(rows: Tensor, k: int, block: int) -> Tensor:
    """Squared distance (N,) of every row to its k-th nearest other row."""
    parts = []
    for start in range(0, len(rows), block):
        distances = _squared_distances(rows[start : start + block], rows)
        itself = torch.arange(len(distances), device=rows.device)
        distances[itself, itself + start] = torch.inf
        parts.append(distances.kthvalue(k, dim=1).values)
    return torch.cat(parts)
