"""One flipped bit in any file that the project writes and reads back: a refusal, or exactly the old content."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ldm.checkpoint import read_checkpoint, save_checkpoint
from ldm.checkpoint.io import save_safetensors
from ldm.data.in_memory_dataset import InMemoryDataset, cache_dataset
from ldm.data.parquet import ParquetImages
from ldm.errors import UserError
from ldm.evaluation.metrics.statistics import FeatureStatistics
from ldm.samples import SampleSet, SampleWriter
from ldm.samples.export import write_npz, write_parquet

PLACES = 120  # flipped bits a file


def samples() -> SampleSet:
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)).mul(255).round().div(127.5).sub(1)
    return SampleSet(images, torch.arange(12) % 3, {"seed": 3, "config": "a.yaml"})


def written_in_batches(path: Path) -> None:
    with SampleWriter(path, 12, samples().labels, samples().meta) as writer:
        for images in samples().images.split(5):
            writer.write(images)
        writer.finish()


def statistics(path: Path) -> None:
    FeatureStatistics(np.arange(3.0), np.eye(3), count=9, extractor="pixels").save(path)


def read_samples(path: Path) -> Any:
    found = SampleSet.load(path)
    return found.images.tolist(), None if found.labels is None else found.labels.tolist(), found.meta


def read_records(dataset: Any) -> Any:
    return [
        (np.asarray(item["image"]).tolist(), int(item["class_label"])) for item in map(dataset.__getitem__, range(12))
    ]


def read_weights(path: Path) -> Any:
    return {key: value.tolist() for key, value in read_checkpoint(path).state_dict.items()}


def read_statistics(path: Path) -> Any:
    found = FeatureStatistics.load(path)
    return found.mu.tolist(), found.sigma.tolist(), found.count, found.extractor


def weights() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.randn(16, 4, generator=torch.Generator().manual_seed(0)), "a.bias": torch.zeros(16)}


def cached(path: Path) -> None:
    samples().save(path.with_name("first.pt"))
    cache_dataset(InMemoryDataset(path.with_name("first.pt")), path, progress=False)


FORMATS: dict[str, tuple[Callable[[Path], object], Callable[[Path], Any]]] = {
    "batches.pt": (written_in_batches, read_samples),
    "whole.pt": (lambda path: samples().save(path), read_samples),
    "export.npz": (lambda path: write_npz(samples(), path), read_samples),
    "export.parquet": (
        lambda path: write_parquet(samples(), path),
        lambda path: read_records(ParquetImages(path, channels=1)),
    ),
    "cached.pt": (cached, lambda path: read_records(InMemoryDataset(path))),
    "weights.ckpt": (lambda path: save_checkpoint({"state_dict": weights()}, path), read_weights),
    "weights.safetensors": (lambda path: save_safetensors(weights(), path, {"note": "a"}), read_weights),
    "statistics.npz": (statistics, read_statistics),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_flipped_bit_is_noticed(tmp_path: Path, name: str) -> None:
    write, read = FORMATS[name]
    path = tmp_path / name
    write(path)
    sound = path.read_bytes()
    expected = json.dumps(read(path))
    refused = 0
    for place in np.linspace(0, len(sound) - 1, PLACES).astype(int):
        damaged = bytearray(sound)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        try:
            found = json.dumps(read(path))
        except UserError as error:
            assert "\n" not in str(error), error
            refused += 1
        else:
            assert found == expected, f"bit {place % 8} of byte {place} of {len(sound)}"
    assert refused > PLACES / 10
