"""Feature statistics by name: read from a file, or computed from images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ldm.errors import UserError
from ldm.evaluation.features import FeatureExtractor, make_extractor
from ldm.evaluation.inputs.image_source import Batches, ImageSource, is_statistics_file, open_images
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
    if shard.whole:
        images = (images for images, _ in source.batches(batch_size))
        compute_statistics(images, extractor, quantize=quantize, source=source.name).save(output)
        return FeatureStatistics.load(output)
    files = shard.files(output)
    # batches of another size have other images, so that parts of both would count some twice and others never
    names = [f"{source.name} (part {n + 1} of {shard.count}, batches of {batch_size})" for n in range(shard.count)]

    def check(number: int) -> FeatureStatistics:
        there = FeatureStatistics.load(files[number])
        made = (there.extractor, there.weights, there.quantize, there.source)
        if made != (extractor.name, extractor.weights, quantize, names[number]):
            raise UserError(f"{files[number]}: is of other images or was made with other settings; remove it")
        return there

    def merge(_: Sequence[Path]) -> None:
        whole = merged([check(number) for number in range(shard.count)])
        replace(whole, source=source.name).save(output)

    if files[shard.index].exists():
        check(shard.index)
    else:
        images = (images for images, _ in _enough(source.batches(batch_size, shard), shard))
        part = compute_statistics(images, extractor, quantize=quantize, source=names[shard.index])
        part.save(files[shard.index])
    return FeatureStatistics.load(output) if merge_when_complete(output, files, merge) else None


def _enough(batches: Batches, shard: Shard) -> Batches:
    """The same batches. Raises UserError at their end for fewer than the two images that a part needs."""
    count = 0
    for images, labels in batches:
        count += len(images)
        yield images, labels
    if count < 2:
        raise UserError(
            f"part {shard.index + 1} of {shard.count} has {count} images, and 2 are needed; type fewer parts, or a "
            "smaller --batch_size in every part"
        )
