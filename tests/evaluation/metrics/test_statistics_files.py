"""Statistics of an image set by several processes: those of one, for every kind of source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ldm.errors import UserError
from ldm.evaluation.features import make_extractor
from ldm.evaluation.inputs.image_source import ImageSource, folder_images, open_images
from ldm.evaluation.metrics.statistics import FeatureStatistics, RunningStatistics, merged
from ldm.evaluation.metrics.statistics_files import write_statistics
from ldm.samples import SampleSet, save_grid
from ldm.samples.shards import Shard

COUNT, BATCH = 23, 5


def sample_file(folder: Path) -> ImageSource:
    images = torch.rand(COUNT, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    SampleSet(images).save(folder / "images.pt")
    return open_images(str(folder / "images.pt"))


def image_folder(folder: Path) -> ImageSource:
    (folder / "images").mkdir()
    for number in range(COUNT):
        generator = torch.Generator().manual_seed(number)
        save_grid(torch.rand(1, 1, 4, 4, generator=generator) * 2 - 1, folder / "images" / f"{number:02}.png")
    return folder_images(folder / "images")


def dataset(folder: Path) -> ImageSource:
    return open_images("ldm.data.glyphs.GlyphsTrain", [f"count:{COUNT}", "size:8"])


@pytest.mark.parametrize("kind", [sample_file, image_folder, dataset])
def test_parts_are_the_statistics_of_one_process(kind: object, tmp_path: Path) -> None:
    source: ImageSource = kind(tmp_path)  # type: ignore[operator]
    extractor = make_extractor("pixels", weights=None, device=torch.device("cpu"))
    whole = write_statistics(source, extractor, tmp_path / "whole.npz", batch_size=BATCH)
    assert whole is not None and whole.count == COUNT
    batches = [len(images) for index in range(2) for images, _ in source.batches(BATCH, Shard(index, 2))]
    assert batches == [5, 5, 5, 5, 3], "every batch belongs to one part"
    output = tmp_path / "parts.npz"
    assert write_statistics(source, extractor, output, batch_size=BATCH, shard=Shard(1, 2)) is None
    assert not output.exists()
    found = write_statistics(source, extractor, output, batch_size=BATCH, shard=Shard(0, 2))
    assert found is not None and found.count == COUNT and found.policy() == whole.policy()
    assert found.source == whole.source == source.name
    np.testing.assert_allclose(found.mu, whole.mu, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.sigma, whole.sigma, rtol=1e-9, atol=1e-12)
    assert not list(tmp_path.glob("*.part-*"))


def test_a_finished_part_is_kept_and_one_of_other_images_refused(tmp_path: Path) -> None:
    source = sample_file(tmp_path)
    extractor = make_extractor("pixels", weights=None, device=torch.device("cpu"))
    given = {"batch_size": BATCH, "shard": Shard(0, 2)}
    write_statistics(source, extractor, tmp_path / "a.npz", **given)
    (part,) = tmp_path.glob("a.part-1-of-2.npz")
    before = part.stat().st_mtime_ns
    write_statistics(source, extractor, tmp_path / "a.npz", **given)
    assert part.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="made with other settings; remove it"):
        write_statistics(source, extractor, tmp_path / "a.npz", quantize=True, **given)


def test_parts_of_batches_of_two_sizes_are_not_mixed(tmp_path: Path) -> None:
    source = sample_file(tmp_path)
    extractor = make_extractor("pixels", weights=None, device=torch.device("cpu"))
    write_statistics(source, extractor, tmp_path / "a.npz", batch_size=10, shard=Shard(0, 2))  # 10 of 23 images
    with pytest.raises(UserError, match="part-1-of-2.npz: is of other images or was made with other settings"):
        write_statistics(source, extractor, tmp_path / "a.npz", batch_size=4, shard=Shard(1, 2))  # the last 11
    assert not (tmp_path / "a.npz").exists()


@pytest.mark.parametrize(("batch", "count"), [(500, 0), (22, 1)])
def test_a_part_with_too_few_images_says_what_to_type(batch: int, count: int, tmp_path: Path) -> None:
    source = sample_file(tmp_path)
    extractor = make_extractor("pixels", weights=None, device=torch.device("cpu"))
    shard = Shard(0, 2) if count == 0 else Shard(1, 2)
    with pytest.raises(
        UserError, match=f"has {count} images, and 2 are needed; type fewer parts, or a smaller --batch"
    ):
        write_statistics(source, extractor, tmp_path / "a.npz", batch_size=batch, shard=shard)
    assert not list(tmp_path.glob("a*"))


def test_merged_statistics_are_those_of_numpy() -> None:
    rows = np.random.default_rng(0).normal(3.0, 2.0, (50, 6))
    parts = []
    for some in np.split(rows, [7, 30]):
        running = RunningStatistics(6)
        running.update(some)
        parts.append(FeatureStatistics(running.mean, running.covariance, running.count, size="4x4"))
    found = merged(parts)
    np.testing.assert_allclose(found.mu, rows.mean(0))
    np.testing.assert_allclose(found.sigma, np.cov(rows.T))
    assert found.count == 50 and found.size == "4x4"
