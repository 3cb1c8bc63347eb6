"""Cells whose centres follow the records: blobs are found, noise moves little, sums of groups are those of a loop."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.privacy.ledger import Ledger
from ldm.privacy.statistics import (
    ClassMixture,
    ClassMoments,
    Frame,
    cell_groups,
    fit_mixture,
    fit_round,
    release,
)
from ldm.privacy.statistics.cells import principal

K, RECORDS, CELLS = 4, 9000, 3
WIDTHS = (0.2, 0.2, 0.8)


def places() -> Tensor:
    """Centres (2, 3, k) of three blobs a class, which no k-means on one Gaussian finds."""
    result = torch.zeros(2, CELLS, K, dtype=torch.float64)
    result[:, 1, 0], result[:, 2, 0] = 2.0, 9.0
    result[:, 2, 1] = 3.0
    result[1] += 5.0
    return result


def data() -> tuple[Tensor, Tensor]:
    """Two classes, each of three blobs; the third is four times as wide."""
    generator = torch.Generator().manual_seed(3)
    labels, blob = torch.arange(RECORDS) % 2, torch.arange(RECORDS) // 2 % CELLS
    noise = torch.randn(RECORDS, K, generator=generator, dtype=torch.float64)
    return places()[labels, blob] + torch.tensor(WIDTHS).double()[blob][:, None] * noise, labels


def first() -> ClassMixture:
    """One Gaussian a class, without noise."""
    query = ClassMoments(Frame.identity(K), 2, 30.0)
    return fit_mixture(query, release(query, *data(), noise_multiplier=1e-6, ledger=Ledger()))


def centres_query(anchors: Tensor, norm: float = 4.0) -> ClassMoments:
    return ClassMoments(Frame.identity(K), 2, norm, (0.5, 1.0, 0.0), anchors, centred=True)


def lloyd(rounds: int, noise: float) -> ClassMixture:
    """The mixture after ``rounds`` private steps from the cells that draws of one Gaussian have."""
    mixture = first()
    anchors = mixture.centres(CELLS)
    for _ in range(rounds):
        query = centres_query(anchors)
        mixture = fit_round(query, release(query, *data(), noise_multiplier=noise, ledger=Ledger()), mixture)
        anchors = mixture.means
    return mixture


def farthest(mixture: ClassMixture) -> float:
    """The largest distance of a blob from the nearest centre of its class."""
    return float(torch.cdist(places(), mixture.means).amin(dim=2).max())


def test_centres_come_to_the_blobs() -> None:
    assert farthest(replace(first(), means=first().centres(CELLS))) > 1, "cells of one Gaussian are elsewhere"
    assert farthest(lloyd(8, 1e-4)) < 0.1
    assert farthest(lloyd(8, 3.0)) < 0.3, "with noise, too"


def test_one_step_is_that_of_a_loop() -> None:
    """Without noise and with a large norm: the means of the records that are nearest to each centre."""
    rows, labels = (part[:600] for part in data())
    anchors = first().centres(CELLS)
    query = centres_query(anchors, norm=100.0)
    mixture = fit_round(query, release(query, rows, labels, noise_multiplier=1e-8, ledger=Ledger()), first())
    for label in range(2):
        own = rows[labels == label]
        nearest = [min(range(CELLS), key=lambda cell: float((row - anchors[label, cell]).norm())) for row in own]
        for cell in range(CELLS):
            members = own[torch.tensor(nearest) == cell]
            assert torch.allclose(mixture.means[label, cell], members.mean(dim=0), atol=1e-4)
            assert float(mixture.weights[label, cell]) == pytest.approx(len(members) / len(own), abs=1e-6)


def test_noise_alone_moves_no_centre_far() -> None:
    anchors = first().centres(CELLS)
    query = centres_query(anchors)
    moved = []
    for seed in range(10):
        answer = release(query, *data(), noise_multiplier=1e5, ledger=Ledger(), insecure_seed=seed)
        mixture = fit_round(query, answer, first())
        moved.append(float((mixture.means - anchors).norm(dim=2).median()))
        assert torch.isfinite(mixture.factors).all() and torch.isfinite(mixture.weights).all()
    # an estimate without correction would be off by norm x noise / count, which is at least the norm
    assert sorted(moved)[5] < query.clip_norm


def groups_query(anchors: Tensor, groups: Tensor, norm: float) -> ClassMoments:
    return ClassMoments(Frame.identity(K), 2, norm, (0.3, 0.4, 1.0), anchors, centred=True, groups=groups)


def test_cells_of_a_group_share_their_spread() -> None:
    groups = torch.tensor([[0, 0, 1], [1, 1, 0]])
    query = groups_query(places(), groups, 50.0)
    answer = release(query, *data(), noise_multiplier=1e-4, ledger=Ledger())
    mixture = fit_round(query, answer, first())
    for label in range(2):
        for cell, width in enumerate(WIDTHS):
            found = mixture.factors_of_cells(label)[cell] @ mixture.factors_of_cells(label)[cell].T
            assert torch.allclose(found, width**2 * torch.eye(K).double(), atol=0.01 + 0.08 * width**2)
    assert farthest(mixture) < 0.05 and mixture.factors.shape == (2, 2, K, K), "one factor a group"


def test_draws_of_groups_are_those_of_cells_with_factors_of_their_own() -> None:
    groups = torch.tensor([[0, 0, 1], [1, 1, 0]])
    query = groups_query(places(), groups, 50.0)
    mixture = fit_round(query, release(query, *data(), noise_multiplier=1e-4, ledger=Ledger()), first())
    alone = replace(mixture, factors=torch.stack([mixture.factors_of_cells(label) for label in (0, 1)]), groups=None)
    labels = torch.arange(50) % 2
    one, other = (each.draw(labels, torch.Generator().manual_seed(0)) for each in (mixture, alone))
    assert torch.equal(one, other) and alone.factors.shape == (2, CELLS, K, K)
    assert all(torch.allclose(*pair) for pair in zip(principal(mixture, 1)[:2], principal(alone, 1)[:2], strict=True))


def test_a_class_with_fewer_groups_than_others() -> None:
    query = groups_query(places(), torch.tensor([[0, 1, 2], [0, 0, 0]]), 50.0)
    mixture = fit_round(query, release(query, *data(), noise_multiplier=1e-4, ledger=Ledger()), first())
    assert mixture.factors.shape == (2, 3, K, K) and torch.isfinite(mixture.factors).all()
    assert torch.isfinite(mixture.draw(torch.ones(50, dtype=torch.long))).all()


def test_the_spread_is_what_is_left_around_means_that_the_round_released() -> None:
    """Anchors beside the blobs: the second moments around them are larger than the spread by their distance."""
    anchors = places() + 0.3
    query = groups_query(anchors, torch.tensor([[0, 0, 1], [0, 0, 1]]), 50.0)
    mixture = fit_round(query, release(query, *data(), noise_multiplier=1e-4, ledger=Ledger()), first())
    found = mixture.factors_of_cells(0)[2] @ mixture.factors_of_cells(0)[2].T
    assert torch.allclose(found, 0.64 * torch.eye(K).double(), atol=0.05) and farthest(mixture) < 0.1


def test_clipping_is_made_up_for() -> None:
    """Half of the differences are longer than the norm; the draws of ``before`` tell how much that takes away."""
    rows, labels = data()
    exact = lloyd(8, 1e-4)
    query = groups_query(exact.means, torch.zeros(2, CELLS, dtype=torch.long), exact.radius(exact.means))
    mixture = fit_round(query, release(query, rows, labels, noise_multiplier=1e-5, ledger=Ledger()), exact)
    trace = float((mixture.factors[0, 0] @ mixture.factors[0, 0].T).trace())
    offsets = rows[labels == 0] - exact.means[0][torch.cdist(rows[labels == 0], exact.means[0]).argmin(dim=1)]
    assert trace == pytest.approx(float(offsets.square().sum(dim=1).mean()), rel=0.25)


def test_the_sums_of_groups_are_those_of_a_loop() -> None:
    rows, labels = data()
    rows[:3] *= 50  # to be clipped
    groups = torch.tensor([[0, 1, 0], [2, 0, 1]])
    query = groups_query(places(), groups, 1.5)
    second = torch.zeros(2, 3, K, K, dtype=torch.float64)
    for row, label in zip(rows[:60], labels[:60].tolist(), strict=True):
        cell = min(range(CELLS), key=lambda which: float((row - places()[label, which]).norm()))
        unit = (row - places()[label, cell]) / max(float((row - places()[label, cell]).norm()), 1.5)
        second[label, groups[label, cell]] += torch.outer(unit, unit)
    stored = query.total(rows[:60], labels[:60])["second"]
    assert torch.allclose(query.matrices(stored).view(2, 3, K, K), second)
    assert query.describe()["groups"] == 3 and query.bound == pytest.approx(math.hypot(0.3, 0.4, 1.0))


def test_groups_are_near_cells_and_have_no_gaps() -> None:
    anchors = torch.tensor([[[0.0], [0.1], [9.0], [9.1]], [[5.0], [5.0], [5.0], [5.0]]])
    found = cell_groups(anchors, 2)
    assert found[0, 0] == found[0, 1] != found[0, 2] == found[0, 3]
    assert found[1].tolist() == [0, 0, 0, 0], "equal cells are one group, numbered from 0"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"centred": False}, "set centred"),
        ({"second_by_cell": True}, "leave out second_by_cell"),
        ({"groups": torch.zeros(2, 2, dtype=torch.long)}, "expected \\(2, 3\\)"),
        ({"groups": torch.zeros(2, 3)}, "whole numbers"),
        ({"groups": torch.full((2, 3), -1)}, "from 0"),
    ],
)
def test_groups_out_of_place_are_refused(change: dict[str, object], words: str) -> None:
    good = groups_query(places(), torch.zeros(2, CELLS, dtype=torch.long), 1.0)
    with pytest.raises(UserError, match=words):
        replace(good, **change)
