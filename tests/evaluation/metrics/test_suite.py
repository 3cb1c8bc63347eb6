"""The suites: every metric on Gaussian features and images, and a reason for each one that is missing."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.evaluation.features import PixelFeatures
from ldm.evaluation.metrics.suite import METRICS, SUITES, Measurement, MeasureOptions, get_suite, measure
from ldm.evaluation.metrics.summary import SetSummary, SummaryOptions, summarise

OPTIONS = MeasureOptions(kid_subset_size=100, kid_subsets=5)


class WithClasses(PixelFeatures):
    def logits(self, features: Tensor) -> Tensor:
        return features[:, :4] * 5


def summary(images: Tensor, labels: Tensor | None = None, extractor: PixelFeatures | None = None) -> SetSummary:
    pairs = zip(images.split(64), labels.split(64) if labels is not None else [None] * len(images), strict=False)
    return summarise(pairs, extractor or WithClasses(), SummaryOptions(subset=150))


def blobs(count: int = 300, noise: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images of a bright square whose place depends on the class, with noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    images = torch.full((count, 1, 16, 16), -0.5) + 0.3 * torch.rand(count, 1, 1, 1, generator=generator)
    for label in range(3):
        images[labels == label, :, 4 * label : 4 * label + 6, 2:9] += 0.6
    images += 0.1 * torch.randn(images.shape, generator=generator)
    return (images + noise * torch.randn(images.shape, generator=generator)).clamp(-1, 1), labels


def scored(noise: float, seed: int = 0) -> Measurement:
    return measure(summary(*blobs()), summary(*blobs(noise=noise, seed=seed)), SUITES["all"], OPTIONS)


def test_a_set_against_itself() -> None:
    found = scored(0.0)
    values = {name: score.value for name, score in found.scores.items()}
    assert values["frechet"] < 1e-9 and values["frechet_class_mean"] < 1e-9
    assert abs(values["kid"]) < 5e-3
    assert values["precision"] == values["recall"] == values["coverage"] == 1 and values["density"] > 0.9
    assert 1 < values["inception_score"] < 4 and found.skipped == {} and set(found.per_class) == {0, 1, 2}


def test_every_metric_gets_worse_with_noise() -> None:
    steps = [scored(noise) for noise in (0.0, 0.6, 1.2, 2.4)]
    for name in ("frechet", "kid", "frechet_class_mean"):
        values = [step.scores[name].value for step in steps]
        assert values == sorted(values) and values[1] > values[0], name
    for name in ("precision", "coverage"):
        values = [step.scores[name].value for step in steps]
        assert values == sorted(values, reverse=True) and values[-1] < 0.5, name


def test_gaussian_features_give_the_closed_form() -> None:
    """Images whose pixels' area means are Gaussian: the distance is that of their means and deviations."""
    generator = np.random.default_rng(0)
    first, second = (torch.from_numpy(0.05 * generator.normal(size=(4000, 1, 8, 8)) + mean) for mean in (0.0, 0.1))
    found = measure(summary(first), summary(second), SUITES["all"], OPTIONS)
    assert found.scores["frechet"].value == pytest.approx(64 * 0.1**2, rel=0.02)


def test_few_images_give_numbers_or_reasons_never_nan() -> None:
    for count in (2, 4, 6, 20):
        found = measure(summary(*blobs(300)), summary(*blobs(count, seed=1)), SUITES["all"], OPTIONS)
        assert all(math.isfinite(score.value) for score in found.scores.values())
        assert math.isfinite(found.scores["frechet"].value) and "biased upwards" in found.scores["frechet"].note
        missing = {"precision_recall", "density_coverage"} if count < 4 else set()
        assert missing <= set(found.skipped) and ("inception_score" in found.skipped) == (count < 20)
        assert all(reason for reason in found.skipped.values())


def test_reasons_are_named() -> None:
    plain = measure(
        summary(blobs()[0], None, PixelFeatures()), summary(blobs()[0], None, PixelFeatures()), SUITES["all"]
    )
    assert "no labels" in plain.skipped["per_class"] and "names no classes" in plain.skipped["inception_score"]
    suite = measure(summary(*blobs()), summary(*blobs()), SUITES["mnist"], OPTIONS)
    assert suite.skipped == {"inception_score": "not part of the suite mnist"}
    apart = measure(summary(*blobs()), summary(blobs()[0], blobs()[1] + 5), SUITES["all"], OPTIONS)
    assert "no class has two images on both sides" in apart.skipped["per_class"]


def test_unlike_summaries_are_refused_unless_forced() -> None:
    real = summary(*blobs())
    other = replace(real, statistics=replace(real.statistics, quantize=True))
    with pytest.raises(UserError, match="--quantize"):
        measure(real, other, SUITES["all"])
    assert measure(real, other, SUITES["all"], replace(OPTIONS, force=True)).scores["frechet"].value < 1e-9


def test_suites_by_name() -> None:
    assert get_suite("cifar10").class_name(3) == "cat" and get_suite("celeba").class_name(1) == "1"
    assert set(SUITES["all"].metrics) == set(METRICS)
    with pytest.raises(UserError, match="did you mean 'mnist'"):
        get_suite("minst")
