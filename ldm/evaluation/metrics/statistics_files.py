"""Feature statistics by name: read from a file, or computed from images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ldm.errors import UserError
from ldm.evaluation.features import FeatureExtractor, make_extractor
from ldm.evaluation.inputs.image_source import ImageSource, is_statistics_file, open_images
from ldm.evaluation.metrics.statistics import FeatureStatistics, compute_statistics, merged
from ldm.samples.shards import WHOLE, Shard, merge_when_complete


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


def write_statistics(
    source: ImageSource,
    extractor: FeatureExtractor,
    output: str | Path,
    *,
    batch_size: int = 500,
    quantize: bool = False,
    shard: Shard = WHOLE,
) -> FeatureStatistics | None:
    """Write the statistics of ``source`` to ``output`` and return them.

    With a ``shard`` only its batches are read, into a file beside ``output``; the process that finishes last merges the
    parts and returns the result, the others return None. A part that is there already is not computed again.
    Raises UserError, also for a part that was made with other settings.
    """
    output = Path(output)
    own = output if shard.whole else shard.files(output)[shard.index]
    there = FeatureStatistics.load(own) if own.exists() and not shard.whole else None
    if there is None:
        images = (images for images, _ in source.batches(batch_size, shard))
        compute_statistics(images, extractor, quantize=quantize, source=source.name).save(own)
    elif (there.extractor, there.weights, there.quantize, there.source) != (
        extractor.name,
        extractor.weights,
        quantize,
        source.name,
    ):
        raise UserError(f"{own}: is of other images or was made with other settings; remove it")

    def merge(parts: Sequence[Path]) -> None:
        merged([FeatureStatistics.load(part) for part in parts]).save(output)

    if shard.whole or merge_when_complete(output, shard.files(output), merge):
        return FeatureStatistics.load(output)
    return None
