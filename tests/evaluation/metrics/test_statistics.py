"""Streaming statistics equal the plain ones, files keep them, and unlike sets are not compared."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ldm.errors import UserError
from ldm.evaluation.features import PixelFeatures
from ldm.evaluation.metrics.statistics import (
    FeatureStatistics,
    RunningStatistics,
    compare,
    compute_statistics,
    describe,
    mismatch,
)


def made(count: int = 100, **changes: object) -> FeatureStatistics:
    images = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(count)) * 2 - 1
    return replace(compute_statistics(images.split(32), PixelFeatures(), source="test"), **changes)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(0, 2**31), st.floats(-1e4, 1e4))
def test_streaming_equals_numpy(sizes: list[int], seed: int, offset: float) -> None:
    rows = np.random.default_rng(seed).normal(size=(sum(sizes) + 2, 5)) + offset
    running = RunningStatistics(5)
    for part in np.split(rows, np.cumsum(sizes)):
        running.update(part)
    assert running.count == len(rows)
    assert np.allclose(running.mean, rows.mean(axis=0), rtol=1e-12, atol=1e-12)
    assert np.allclose(running.covariance, np.cov(rows, rowvar=False), rtol=1e-9, atol=1e-9)


def test_large_mean_does_not_swallow_the_variance() -> None:
    rows = np.random.default_rng(0).normal(size=(1000, 2)) * 1e-3 + 1e4
    running = RunningStatistics(2)
    for part in np.split(rows, 10):
        running.update(part)
    assert np.allclose(running.covariance, np.cov(rows, rowvar=False), rtol=1e-6)


def test_bad_features_are_refused() -> None:
    running = RunningStatistics(2)
    with pytest.raises(UserError, match="NaN"):
        running.update(torch.full((3, 2), float("nan")))
    with pytest.raises(ValueError, match="shape"):
        running.update(torch.zeros(3, 4))
    with pytest.raises(UserError, match="at least 2"):
        _ = running.covariance


def test_file_round_trip(tmp_path: Path) -> None:
    statistics = made(quantize=True, weights="abc")
    statistics.save(tmp_path / "a.npz")
    loaded = FeatureStatistics.load(tmp_path / "a.npz")
    for name in FeatureStatistics.__dataclass_fields__:
        assert np.array_equal(getattr(loaded, name), getattr(statistics, name)), name
    assert loaded.count == 100 and loaded.extractor == "pixels" and loaded.source == "test" and loaded.quantize is True
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_files_of_other_programs_load(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", mu=np.zeros(3, np.float32), sigma=np.eye(3))
    loaded = FeatureStatistics.load(tmp_path / "other.npz")
    assert loaded.extractor == "unknown" and loaded.count == 0 and loaded.mu.dtype == np.float64


@pytest.mark.parametrize("name", ["missing.npz", "text.npz", "keys.npz", "shape.npz"])
def test_bad_files_are_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.npz").write_text("hello")
    np.savez(tmp_path / "keys.npz", mean=np.zeros(3))
    np.savez(tmp_path / "shape.npz", mu=np.zeros(3), sigma=np.eye(2))
    with pytest.raises(UserError, match=name) as caught:
        FeatureStatistics.load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_same_images_are_at_distance_zero_and_noise_is_not() -> None:
    images = torch.rand(200, 1, 16, 16) * 2 - 1
    first = compute_statistics([images], PixelFeatures())
    assert compare(first, compute_statistics(images.split(7), PixelFeatures())) < 1e-9
    assert compare(first, compute_statistics([images * 0.5], PixelFeatures())) > 0.1


def test_quantize_rounds_to_image_file_levels() -> None:
    images = torch.rand(50, 1, 8, 8) * 2 - 1
    levels = ((images + 1) * 127.5).round().to(torch.uint8)
    from_bytes = compute_statistics([levels.float() / 127.5 - 1], PixelFeatures())
    quantized = compute_statistics([images], PixelFeatures(), quantize=True)
    raw = compute_statistics([images], PixelFeatures())
    assert np.allclose(quantized.mu, from_bytes.mu, atol=1e-6) and quantized.quantize and not raw.quantize
    assert np.abs(raw.mu - from_bytes.mu).max() > 1e-6


def test_overshooting_samples_are_clamped() -> None:
    images = torch.rand(50, 1, 8, 8) * 4 - 2
    found = compute_statistics([images], PixelFeatures())
    assert np.array_equal(found.mu, compute_statistics([images.clamp(-1, 1)], PixelFeatures()).mu)


def test_too_few_images_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made(64)
    assert "64 images for 64 features" in caplog.text
    caplog.clear()
    made(65)
    assert not caplog.text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"extractor": "inception"}, "different extractors"),
        ({"weights": "other"}, "different weights"),
        ({"resize": "other"}, "resized differently"),
        ({"quantize": True}, "--quantize"),
        ({"size": "32x32"}, r"different sizes \(16x16 and 32x32 pixels; --real_args size:N"),
    ],
)
def test_unlike_statistics_are_refused_unless_forced(
    changes: dict[str, str], words: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = made(weights="some"), made(**{"weights": "some", **changes})
    with pytest.raises(UserError, match=words):
        compare(first, second)
    assert compare(first, second, force=True) < 1e-9
    assert re.search(words, caplog.text)


def test_files_of_other_programs_compare_although_they_say_nothing_of_rounding() -> None:
    wide = FeatureStatistics(np.zeros(2048), np.eye(2048))
    ours = replace(wide, extractor="inception", quantize=True, size="32x32", weights="abc")
    assert mismatch(wide, ours) == mismatch(ours, wide) == mismatch(wide, wide) == ""
    assert "different extractors" in mismatch(wide, replace(ours, extractor="efficientnet-lite0"))


def test_policy_is_told_and_kept(tmp_path: Path) -> None:
    statistics = made(quantize=True, weights="abc")
    statistics.save(tmp_path / "a.npz")
    found = FeatureStatistics.load(tmp_path / "a.npz").policy()
    assert found == "16x16 pixels, clamped to [-1, 1], rounded to 8 bits, resized: area 8, pixels (weights abc)"
    assert "floats" in made().policy()


def test_images_of_several_sizes_are_recorded() -> None:
    found = compute_statistics([torch.rand(9, 1, 16, 16), torch.rand(9, 1, 8, 8)], PixelFeatures())
    assert found.size == "mixed" and found.count == 18


def test_count_differences_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    compare(made(100), made(201))
    assert "100 and 201 images" in caplog.text


def test_only_inception_numbers_are_called_fid() -> None:
    wide = FeatureStatistics(np.zeros(2048), np.eye(2048))
    inception = replace(wide, extractor="inception")
    assert describe(inception, inception) == "FID" and describe(wide, inception) == "FID"
    assert describe(made(), made()) == "Frechet distance (pixels)"
    assert describe(made(extractor="unknown"), made(extractor="unknown")) == "Frechet distance (unknown)"
    assert describe(made(), inception) == "Frechet distance (inception / pixels)"


def _arrays(**changes: object) -> dict[str, object]:
    return {"mu": np.zeros(3), "sigma": np.eye(3), "count": np.asarray(50), **changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sigma": -np.eye(3)}, "negative eigenvalues"),
        ({"sigma": np.triu(np.ones((3, 3)))}, "not symmetric"),
        ({"mu": np.zeros(3, complex)}, "expected real numbers"),
        ({"mu": np.array(["a", "b", "c"])}, "expected real numbers"),
        ({"sigma": np.eye(3) * np.nan}, "NaN or infinite"),
        ({"count": np.asarray(-5)}, "count is -5"),
        ({"count": np.asarray(1)}, "count is 1"),
        ({"count": np.arange(3)}, "count is int64 of shape"),
        ({"count": np.asarray("many")}, "count is <U4"),
        ({"extractor": np.arange(3)}, "extractor is int64"),
        ({"mu": np.zeros((0,)), "sigma": np.zeros((0, 0))}, r"expected \(D,\) and \(D, D\)"),
    ],
)
def test_only_a_mean_and_a_covariance_are_taken(tmp_path: Path, changes: dict, words: str) -> None:
    np.savez(tmp_path / "good.npz", **_arrays())
    assert FeatureStatistics.load(tmp_path / "good.npz").count == 50
    np.savez(tmp_path / "bad.npz", **_arrays(**changes))
    with pytest.raises(UserError, match=f"bad.npz: .*{words}") as caught:
        FeatureStatistics.load(tmp_path / "bad.npz")
    assert "\n" not in str(caught.value)


def test_statistics_that_claim_more_than_they_hold(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", mu=np.zeros(4000), sigma=np.zeros((4000, 4000)))
    os.mkfifo(tmp_path / "pipe.npz")
    for name, words in (("bomb", "would unpack"), ("pipe", "a pipe or a device")):
        with pytest.raises(UserError, match=f"{name}.npz.*{words}"):
            FeatureStatistics.load(tmp_path / f"{name}.npz")
