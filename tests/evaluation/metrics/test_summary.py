"""One pass keeps what the metrics need, and no more the longer it is."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.evaluation.features import PixelFeatures
from ldm.evaluation.metrics import summary as module
from ldm.evaluation.metrics.statistics import compute_statistics
from ldm.evaluation.metrics.summary import SummaryOptions, summarise


class WithClasses(PixelFeatures):
    def logits(self, features: Tensor) -> Tensor:
        return features[:, :4] * 5


def random_images(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    images = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return images, torch.arange(count) % 3


def batches(images: Tensor, labels: Tensor | None, size: int = 32) -> Iterator[tuple[Tensor, Tensor | None]]:
    for start in range(0, len(images), size):
        yield images[start : start + size], None if labels is None else labels[start : start + size]


def test_everything_agrees_with_the_whole_set_at_once() -> None:
    images, labels = random_images(200)
    found = summarise(batches(images, labels), WithClasses(), SummaryOptions(subset=50), source="toy")
    whole = compute_statistics([images], PixelFeatures())
    assert np.allclose(found.statistics.mu, whole.mu) and np.allclose(found.statistics.sigma, whole.sigma)
    assert found.subset.shape == (50, 64) and found.classes == {0: 67, 1: 67, 2: 66}
    second = compute_statistics([images[labels == 2]], PixelFeatures())
    assert np.allclose(found.by_class[2].sigma, second.sigma) and found.by_class[2].source == "toy, class 2"
    assert found.inception_score is not None and found.inception_score.count == 200 and not found.missing
    again = summarise(batches(images, labels, 200), WithClasses(), SummaryOptions(subset=50))
    assert np.array_equal(again.subset, found.subset)


def test_what_cannot_be_kept_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = random_images(10)
    plain = summarise(batches(images, None), PixelFeatures())
    assert plain.missing == {
        "inception_score": "the extractor pixels names no classes",
        "per_class": "the images have no labels",
    }
    few = summarise(batches(images, labels), WithClasses())
    assert "splits" in few.missing["inception_score"]
    monkeypatch.setattr(module, "CLASS_MEMORY", 2 * 64**2 * 8)
    many = summarise(batches(images, labels), PixelFeatures())
    assert "more than 2 classes" in many.missing["per_class"] and many.by_class == {}
    with pytest.raises(UserError, match="1 images have no covariance"):
        summarise(batches(images[:1], None), PixelFeatures())


def test_a_class_of_one_image_has_no_statistics() -> None:
    images, _ = random_images(10)
    found = summarise([(images, torch.tensor([0] * 9 + [1]))], PixelFeatures())
    assert set(found.by_class) == {0} and found.classes == {0: 9, 1: 1}


def peak_of(count: int) -> int:
    """Most bytes that numpy held during a pass; the images themselves are made anew for every batch."""

    class NumpyFeatures(PixelFeatures):
        def __call__(self, images: Tensor) -> Tensor:
            return torch.from_numpy(super().__call__(images).numpy().copy())

    def stream() -> Iterator[tuple[Tensor, Tensor]]:
        for start in range(0, count, 100):
            yield random_images(100, start)

    tracemalloc.start()
    summarise(stream(), NumpyFeatures(), SummaryOptions(subset=500))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_memory_is_flat_for_ten_times_the_images() -> None:
    peak_of(200)  # first use of everything
    assert peak_of(10_000) < 1.1 * peak_of(1000) + 50_000
