"""Class distributions from released moments: known ones are recovered, and the noise is corrected for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldm.privacy.ledger import Ledger
from ldm.privacy.statistics import ClassMeanImages, ClassMoments, FourierEmbedding, Frame, fit_mixture, release
from ldm.privacy.statistics.gaussians import ClassMixture, denoised

K, RECORDS = 6, 6000


def data(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Records of two Gaussian classes, their labels, means (2, K) and covariances (2, K, K)."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(2, K, generator=generator, dtype=torch.float64)
    factors = torch.randn(2, K, K, generator=generator, dtype=torch.float64) / 2
    labels = torch.arange(RECORDS) % 2
    noise = torch.randn(RECORDS, K, generator=generator, dtype=torch.float64)
    rows = means[labels] + torch.einsum("nij,nj->ni", factors[labels], noise)
    return rows, labels, means, factors @ factors.transpose(1, 2)


def covariance(mixture, label: int) -> Tensor:
    return mixture.factors[label, 0] @ mixture.factors[label, 0].T


def fitted(noise: float, query: ClassMoments, rows: Tensor, labels: Tensor, **options):
    return fit_mixture(query, release(query, rows, labels, noise_multiplier=noise, ledger=Ledger()), **options)


def test_gaussians_are_found_again() -> None:
    rows, labels, *_ = data()
    mixture = fitted(1e-6, ClassMoments(Frame.identity(K), 2, 100.0), rows, labels)
    for label in (0, 1):
        own = rows[labels == label]
        assert torch.allclose(mixture.means[label, 0], own.mean(dim=0), atol=1e-3)
        assert torch.allclose(covariance(mixture, label), torch.cov(own.T, correction=0), atol=2e-2)
    assert mixture.shares.tolist() == pytest.approx([0.5, 0.5], abs=1e-6)
    drawn = mixture.draw(torch.zeros(50_000, dtype=torch.long), torch.Generator().manual_seed(0))
    assert torch.allclose(drawn.mean(dim=0), mixture.means[0, 0], atol=0.05)
    assert torch.allclose(torch.cov(drawn.T), covariance(mixture, 0), atol=0.1)


def test_cells_follow_a_class_that_is_no_gaussian() -> None:
    generator = torch.Generator().manual_seed(3)
    side = (torch.arange(RECORDS) // 2 % 2 * 2 - 1).double()
    rows = 0.3 * torch.randn(RECORDS, K, generator=generator, dtype=torch.float64)
    rows[:, 0] += 4 * side
    labels = torch.arange(RECORDS) % 2
    anchors = torch.zeros(2, 2, K)
    anchors[:, 0, 0], anchors[:, 1, 0] = -1.0, 1.0
    mixture = fitted(0.01, ClassMoments(Frame.identity(K), 2, 10.0, anchors=anchors), rows, labels)
    drawn = mixture.draw(torch.zeros(4000, dtype=torch.long), generator)
    assert float((drawn[:, 0].abs() < 2).double().mean()) < 0.01, "nothing lies between the two sides"
    assert drawn[:, 1].std() == pytest.approx(0.3, rel=0.15)
    again = fitted(1e-4, ClassMoments(Frame.identity(K), 2, 10.0, anchors=anchors, second_by_cell=True), rows, labels)
    assert torch.allclose(again.factors[0, 1] @ again.factors[0, 1].T, 0.09 * torch.eye(K).double(), atol=0.03)
    places = mixture.centres(2, draws=1000)
    assert sorted(places[0, :, 0].round().tolist()) == [-4, 4]


def test_centred_moments_find_the_same_gaussians() -> None:
    """Differences from centres that are a little wrong: the fit puts the means right, and the spread is the same."""
    rows, labels, truth, _ = data()
    anchors = truth[:, None] + 0.3
    query = ClassMoments(Frame.identity(K), 2, 100.0, anchors=anchors, centred=True)
    mixture = fitted(1e-6, query, rows, labels)
    for label in (0, 1):
        own = rows[labels == label]
        assert torch.allclose(mixture.means[label, 0], own.mean(dim=0), atol=1e-3)
        assert torch.allclose(covariance(mixture, label), torch.cov(own.T, correction=0), atol=2e-2)


def test_centred_moments_of_cells_have_their_own_means_and_spread() -> None:
    generator = torch.Generator().manual_seed(3)
    side = (torch.arange(RECORDS) // 2 % 2 * 2 - 1).double()
    rows = torch.randn(RECORDS, K, generator=generator, dtype=torch.float64) * (0.3 + 0.1 * side)[:, None]
    rows[:, 0] += 4 * side
    labels = torch.arange(RECORDS) % 2
    anchors = torch.zeros(2, 2, K)
    anchors[:, 0, 0], anchors[:, 1, 0] = -3.5, 4.5
    query = ClassMoments(Frame.identity(K), 2, 10.0, anchors=anchors, second_by_cell=True, centred=True)
    mixture = fitted(1e-4, query, rows, labels)
    assert mixture.means[0, :, 0].tolist() == pytest.approx([-4, 4], abs=0.03)
    for cell, width in ((0, 0.2), (1, 0.4)):
        found = mixture.factors[1, cell] @ mixture.factors[1, cell].T
        assert torch.allclose(found, width**2 * torch.eye(K).double(), atol=0.02)


def test_noise_pulls_centred_means_to_their_centres() -> None:
    """Noise alone moves a mean by less than half of what the released sums say."""
    rows, labels, truth, _ = data()
    query = ClassMoments(Frame.identity(K), 2, 1.0, anchors=truth[:, None], centred=True)
    plain, shrunk = 0.0, 0.0
    for _ in range(20):
        answer = release(query, rows, labels, noise_multiplier=100.0, ledger=Ledger())
        plain += float((answer.sums["mean"][:, 0] / answer.sums["count"]).norm())
        shrunk += float((fit_mixture(query, answer).means[:, 0] - truth).norm())
    assert shrunk < plain / 2


def test_centres_and_radius_come_from_the_mixture() -> None:
    one = ClassMixture(
        torch.tensor([0.5, 0.5]).double(),
        torch.tensor([[0.25, 0.75], [1.0, 0.0]]).double(),
        torch.tensor([[[4.0, 0.0], [0.0, 0.0]], [[2.0, 2.0], [9.0, 9.0]]]).double(),
        2 * torch.eye(2).double().expand(2, 1, 2, 2),
    )
    assert one.centres(1).tolist() == [[[1.0, 0.0]], [[2.0, 2.0]]], "one centre a class is its mean"
    # the length of a normal vector with deviation 2 in two dimensions has the median 2 sqrt(2 ln 2) (Rayleigh)
    tight = ClassMixture(one.shares, torch.ones(2, 1).double(), one.means[:, :1], one.factors)
    assert tight.radius(tight.means) == pytest.approx(2 * math.sqrt(2 * math.log(2)), rel=0.05)
    assert tight.radius(tight.means) == tight.radius(tight.means)


def test_a_cell_without_records_is_not_drawn_from() -> None:
    rows, labels, *_ = data()
    anchors = torch.zeros(2, 2, K)
    anchors[:, 1] = 1e3
    mixture = fitted(2.0, ClassMoments(Frame.identity(K), 2, 10.0, anchors=anchors), rows, labels)
    assert mixture.weights[:, 1].tolist() == [0, 0]
    assert torch.isfinite(mixture.means).all()


def test_the_number_of_records_is_the_noisy_one() -> None:
    """Nothing here can divide by a count of records: the fit sees the release only."""
    rows, labels, *_ = data()
    query = ClassMoments(Frame.identity(K), 2, 10.0)
    answer = release(query, rows, labels, noise_multiplier=30.0, ledger=Ledger())
    mixture = fit_mixture(query, answer)
    count = answer.sums["count"][:, 0]
    assert torch.allclose(mixture.means[:, 0], 10.0 * answer.sums["mean"][:, 0] / count[:, None])
    assert torch.allclose(mixture.shares, count / count.sum())


def test_noise_on_a_matrix_is_taken_out() -> None:
    """A spike of known size comes back; a matrix of noise alone has no direction left."""
    k, error = 80, 0.05
    generator = torch.Generator().manual_seed(5)
    upper = torch.randn(k, k, generator=generator, dtype=torch.float64).triu(1) * error
    noise = upper + upper.T + math.sqrt(2) * error * torch.diag(torch.randn(k, generator=generator).double())
    spike = torch.zeros(k, k, dtype=torch.float64)
    spike[0, 0] = 3.0
    cut = torch.linalg.eigvalsh(denoised(spike + noise, error, spread=False))
    assert float(cut[-1]) == pytest.approx(3.0, rel=0.06)
    assert float(cut[-2]) < 2.2 * error * math.sqrt(k) and int((cut > 1e-9).sum()) <= 3
    assert int((torch.linalg.eigvalsh(denoised(noise, error, spread=False)) > 1e-9).sum()) <= 2
    level = spike + 0.2 * torch.eye(k, dtype=torch.float64)
    spread = torch.linalg.eigvalsh(denoised(level + noise, error))
    assert float(spread[:-3].mean()) == pytest.approx(0.2, rel=0.1), "the trace says what the rest has"


def test_correcting_for_noise_brings_covariances_nearer() -> None:
    rows, labels, _, truth = data()
    query = ClassMoments(Frame.identity(K), 2, 6.0)
    raw, corrected = 0.0, 0.0
    for _ in range(10):
        answer = release(query, rows, labels, noise_multiplier=20.0, ledger=Ledger())
        count = answer.sums["count"][:, 0, None, None]
        means = 6.0 * answer.sums["mean"][:, 0] / count[:, 0]
        plain = 36.0 * query.matrices(answer.sums["second"]) / count - means[:, :, None] * means[:, None]
        mixture = fit_mixture(query, answer)
        raw += float((plain - truth).norm())
        corrected += sum(float((covariance(mixture, g) - truth[g]).norm()) for g in (0, 1)) / math.sqrt(2)
    assert corrected < raw


def test_mean_images_and_embeddings_are_those_of_the_class() -> None:
    generator = torch.Generator().manual_seed(2)
    labels = torch.arange(2000) % 2
    images = (0.2 * torch.randn(2000, 1, 8, 8, generator=generator) + (labels * 0.8 - 0.4)[:, None, None, None]).clamp(
        -1, 1
    )
    query = ClassMeanImages(2, 4)
    means = query.means(release(query, images, labels, noise_multiplier=0.1, ledger=Ledger()))
    assert torch.allclose(means[0], torch.full((1, 4, 4), -0.4).double(), atol=0.05)
    assert torch.allclose(means[1], torch.full((1, 4, 4), 0.4).double(), atol=0.05)
    fourier = FourierEmbedding(2, 64, features=200, width=4.0)
    answer = release(fourier, images, labels, noise_multiplier=0.1, ledger=Ledger())
    rows = images.flatten(1).double()
    mean = fourier.mean(answer, 1000)
    assert torch.allclose(mean[0], fourier.embed(rows[labels == 0]).mean(dim=0), atol=2e-3)
    # the kernel that the features stand for
    gram = fourier.embed(rows[:40]) @ fourier.embed(rows[:40]).T
    exact = torch.exp(-torch.cdist(rows[:40], rows[:40]).square() / (2 * 16.0))
    assert float((gram - exact).abs().mean()) < 0.1


def test_a_frame_restores_what_lies_in_its_directions() -> None:
    generator = torch.Generator().manual_seed(4)
    public = torch.randn(500, 3, generator=generator).double() @ torch.randn(3, 8, generator=generator).double() + 2
    frame = Frame.fit(public.view(500, 2, 2, 2), 3)
    assert torch.allclose(frame.restore(frame.project(public)), public, atol=1e-8)
    assert torch.allclose(torch.cov(frame.project(public).T), torch.eye(3).double(), atol=1e-8)
    plain = Frame.fit(public, 3, whitening=0.0)
    assert torch.allclose(plain.project(public).square().sum(), (public - public.mean(dim=0)).square().sum())
    assert frame.digest() != plain.digest()
