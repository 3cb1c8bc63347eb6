"""Feature statistics by name: read from a file, or computed from images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ldm.evaluation.features import make_extractor
from ldm.evaluation.inputs.image_source import is_statistics_file, open_images
from ldm.evaluation.metrics.statistics import FeatureStatistics, compute_statistics


def statistics_of(
    name: str,
    settings: Sequence[str] = (),
    *,
    extractor: str = "inception",
    weights: str | None = None,
    quantize: bool = False,
    batch_size: int = 500,
    device: torch.device | str = "cpu",
) -> FeatureStatistics:
    """The statistics in a file, or those of images by `extractor`; `settings` are for a dataset class or a folder.

    Raises UserError as `open_images`, `make_extractor` and `FeatureStatistics.load` do.
    """
    path = Path(name)
    if is_statistics_file(path):
        return FeatureStatistics.load(path)
    if path.suffix == ".npz" and not path.exists():
        return FeatureStatistics.load(path)  # its error names the commands that write one
    source = open_images(name, () if path.is_file() else settings)
    network = make_extractor(extractor, weights=weights, device=device)
    images = (images for images, _ in source.batches(batch_size))
    return compute_statistics(images, network, quantize=quantize, source=source.name)
