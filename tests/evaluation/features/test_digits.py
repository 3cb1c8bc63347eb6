"""digits-cnn features: repeatable, kept in a file, and sensitive to what a digit looks like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from ldm.checkpoint import save_safetensors
from ldm.errors import UserError
from ldm.evaluation.features import make_extractor
from ldm.evaluation.features.digits import DigitFeatures
from ldm.evaluation.metrics.statistics import compare, compute_statistics
from ldm.samples import SampleSet


@pytest.fixture(scope="module")
def digits() -> SampleSet:
    bunch = load_digits()
    return SampleSet(torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 8 - 1, torch.tensor(bunch.target))


@pytest.fixture(scope="module")
def extractor(digits: SampleSet) -> DigitFeatures:
    return DigitFeatures.fit(digits.subset(torch.arange(200)), epochs=3, lr=3e-3)


def test_features_survive_the_file(extractor: DigitFeatures, digits: SampleSet, tmp_path: Path) -> None:
    extractor.save(tmp_path / "w.safetensors")
    loaded = make_extractor("digits-cnn", weights=tmp_path / "w.safetensors")
    features = loaded(digits.images[:5])
    assert features.shape == (5, 128) and features.dtype == torch.float32
    assert torch.allclose(features, extractor(digits.images[:5]), atol=1e-5)
    assert loaded.weights == extractor.weights


def test_training_repeats(digits: SampleSet) -> None:
    few = digits.subset(torch.arange(100))
    first, second, other = (DigitFeatures.fit(few, epochs=1, seed=seed).weights for seed in (0, 0, 1))
    assert first == second != other


def test_distance_orders_likeness(extractor: DigitFeatures, digits: SampleSet) -> None:
    def statistics(images: torch.Tensor):
        return compute_statistics(images.split(200), extractor)

    rest = digits.images[500:]
    half, other = statistics(rest[::2]), statistics(rest[1::2])
    noise = torch.randn(rest[1::2].shape, generator=torch.Generator().manual_seed(0))
    distances = [
        compare(half, other),
        compare(half, statistics(rest[1::2] + noise)),
        compare(half, statistics(2 * noise)),
    ]
    assert np.all(np.diff(distances) > 0) and distances[1] > 1.5 * distances[0]


def test_foreign_weight_files_are_named(tmp_path: Path) -> None:
    save_safetensors({"a": torch.zeros(2)}, tmp_path / "a.safetensors", None)
    save_safetensors({"classify.weight": torch.zeros(10, 128)}, tmp_path / "b.safetensors", None)
    for name in ("a", "b"):
        with pytest.raises(UserError, match=f"{name}.safetensors: not a digits-cnn") as caught:
            DigitFeatures.load(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(caught.value)


def test_labels_are_needed(digits: SampleSet) -> None:
    with pytest.raises(UserError, match="no labels"):
        DigitFeatures.fit(SampleSet(digits.images[:10]))
