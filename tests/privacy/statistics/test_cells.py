"""Cells in leading directions: known mixtures are recovered, noise leaves the earlier mixture, errors are named."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.privacy.ledger import Ledger
from ldm.privacy.statistics import ClassMixture, ClassMoments, Frame, fit_mixture, fit_round, leading_cells, release
from ldm.privacy.statistics.cells import principal

K, RECORDS = 6, 8000


def data() -> tuple[Tensor, Tensor]:
    """Two classes, each of two blobs of other widths at both ends of a tilted axis; other directions are narrow."""
    generator = torch.Generator().manual_seed(3)
    side = (torch.arange(RECORDS) // 2 % 2 * 2 - 1).double()
    rows = 0.3 * torch.randn(RECORDS, K, generator=generator, dtype=torch.float64)
    rows[:, 1] += (1.0 + 0.5 * side) * torch.randn(RECORDS, generator=generator, dtype=torch.float64)
    rows[:, 0] += 4 * side
    turn = torch.linalg.qr(torch.randn(K, K, generator=generator, dtype=torch.float64))[0]
    return rows @ turn + 2.0, torch.arange(RECORDS) % 2


def rounds(noise: float) -> tuple[ClassMixture, ClassMoments, ClassMixture]:
    """One Gaussian a class without noise; the query of two cells in two directions, and the mixture after it."""
    rows, labels = data()
    first = ClassMoments(Frame.identity(K), 2, 30.0)
    before = fit_mixture(first, release(first, rows, labels, noise_multiplier=1e-6, ledger=Ledger()))
    anchors, basis = leading_cells(before, 2, 2)
    query = ClassMoments(Frame.identity(K), 2, 12.0, (0.5, 0.7, 1.0), anchors, True, True, basis)
    answer = release(query, rows, labels, noise_multiplier=noise, ledger=Ledger())
    return before, query, fit_round(query, answer, before)


def covariance(rows: Tensor) -> Tensor:
    return torch.cov(rows.T)


def test_two_blobs_are_found_again() -> None:
    rows, labels = data()
    before, _, mixture = rounds(1e-3)
    drawn = mixture.draw(torch.zeros(20_000, dtype=torch.long), torch.Generator().manual_seed(0))
    own = rows[labels == 0]
    assert torch.allclose(drawn.mean(dim=0), own.mean(dim=0), atol=0.1)
    assert torch.allclose(covariance(drawn), covariance(own), atol=0.4)
    axis = principal(before, 0)[2][:, -1]
    along = [(part - own.mean(dim=0)) @ axis for part in (own, drawn)]
    assert all(float((place.abs() < 2).double().mean()) < 0.01 for place in along), "nothing lies between the blobs"
    widths = [
        [float(covariance(part[sign * place > 0]).trace()) for sign in (-1, 1)]
        for part, place in zip((own, drawn), along, strict=True)
    ]
    assert max(widths[0]) > 2 * min(widths[0]), "the blobs have different widths"
    assert widths[1] == pytest.approx(widths[0], rel=0.15)


def test_noise_alone_leaves_the_earlier_gaussian() -> None:
    """In nearly all of twenty releases of almost pure noise each cell is what the Gaussian has there."""
    rows, labels = data()
    before, query, _ = rounds(1.0)
    assert query.basis is not None and query.anchors is not None
    earlier = before.draw(torch.zeros(40_000, dtype=torch.long), torch.Generator().manual_seed(0))
    nearest = torch.cdist(earlier, query.anchors[0]).argmin(dim=1)
    parts = [earlier[nearest == cell] for cell in (0, 1)]
    left, rest = 0, torch.eye(K).double() - query.basis[0] @ query.basis[0].T
    for seed in range(20):
        answer = release(query, rows, labels, noise_multiplier=1e4, ledger=Ledger(), insecure_seed=seed)
        mixture = fit_round(query, answer, before)
        close = []
        for cell, own in enumerate(parts):
            found, expected = mixture.factors[0, cell] @ mixture.factors[0, cell].T, covariance(own)
            assert torch.allclose(rest @ found @ rest, rest @ covariance(earlier) @ rest, atol=0.02)
            close.append(torch.allclose(mixture.means[0, cell], own.mean(dim=0), atol=0.15))
            close.append(torch.allclose(found, expected, atol=0.15 * float(expected.max())))
        left += all(close)
    assert left >= 18


def test_the_sums_are_those_of_a_loop() -> None:
    rows, labels = data()
    rows[:3] *= 50  # to be clipped
    _, query, _ = rounds(1.0)
    assert query.basis is not None and query.anchors is not None and query.rank == 2
    count = torch.zeros(2, 2, dtype=torch.float64)
    mean, second = torch.zeros(2, 2, 2, dtype=torch.float64), torch.zeros(2, 2, 2, 2, dtype=torch.float64)
    for row, label in zip(rows[:60], labels[:60].tolist(), strict=True):
        cell = min((0, 1), key=lambda which: float((row - query.anchors[label, which]).norm()))  # type: ignore[index]
        offset = query.basis[label].T @ (row - query.anchors[label, cell])
        unit = offset / max(float(offset.norm()), 12.0)
        count[label, cell] += 0.5
        mean[label, cell] += 0.7 * unit
        second[label, cell] += torch.outer(unit, unit)
    sums = query.total(rows[:60], labels[:60])
    assert torch.allclose(sums["count"], count) and torch.allclose(sums["mean"], mean)
    assert torch.allclose(query.matrices(sums["second"]).view(2, 2, 2, 2), second)


def test_directions_are_the_leading_ones_and_the_same_on_every_machine() -> None:
    rows, labels = data()
    before, query, _ = rounds(1.0)
    assert query.basis is not None and query.anchors is not None
    values, vectors = torch.linalg.eigh(covariance(rows[labels == 1]))
    assert torch.allclose((query.basis[1].T @ vectors[:, -2:]).abs(), torch.eye(2).double(), atol=0.05)
    largest = query.basis.gather(1, query.basis.abs().argmax(dim=1, keepdim=True))
    assert (largest > 0).all(), "the sign of an eigenvector is fixed"
    offsets = query.anchors[1] - principal(before, 1)[0]
    assert torch.allclose(offsets, offsets @ query.basis[1] @ query.basis[1].T), "the class mean in other directions"
    assert (offsets @ query.basis[1]).norm() == pytest.approx(offsets.norm())
    assert float(offsets.norm(dim=1).mean()) > math.sqrt(float(values[-1])) / 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"centred": False}, "centred and second_by_cell"),
        ({"second_by_cell": False}, "centred and second_by_cell"),
        ({"basis": torch.zeros(2, K - 1, 2)}, "basis has shape"),
        ({"basis": torch.ones(2, K, 2)}, "orthonormal"),
    ],
)
def test_a_basis_that_cannot_be_is_refused(change: dict, words: str) -> None:
    good = {"second_by_cell": True, "centred": True, "basis": torch.eye(K)[None, :, :2].expand(2, K, 2)}
    with pytest.raises(UserError, match=words):
        ClassMoments(Frame.identity(K), 2, 1.0, anchors=torch.zeros(2, 1, K), **{**good, **change})


def test_a_basis_needs_the_mixture_that_it_comes_from() -> None:
    rows, labels = data()
    _, query, _ = rounds(1.0)
    answer = release(query, rows, labels, noise_multiplier=1.0, ledger=Ledger())
    with pytest.raises(ValueError, match="need the mixture"):
        fit_round(query, answer, None)
