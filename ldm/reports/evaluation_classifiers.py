"""The classifiers of an evaluation: accuracy on real images, beside guessing, the public model and real training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch

from ldm.evaluation.classifiers.downstream import SeedSummary, downstream_accuracy
from ldm.evaluation.classifiers.networks import DISPLAY_NAMES
from ldm.evaluation.classifiers.protocols import SELECTIONS, ClassifierProtocol
from ldm.evaluation.processes import ALONE, Processes
from ldm.evaluation.result import CHANCE, Downstream, DownstreamRow, build
from ldm.samples import SampleSet


def score_downstream(
    samples: SampleSet,
    test: SampleSet,
    classifiers: Sequence[str],
    protocol: ClassifierProtocol,
    *,
    test_name: str,
    seeds: int,
    device: torch.device,
    others: Mapping[str, SampleSet],
    processes: Processes = ALONE,
) -> Downstream:
    """Accuracy on real images of classifiers trained on the samples.

    others: labelled images of the other levels; the same classifiers are trained on an equal number of them.
    """

    def accuracies(train: SampleSet) -> list[SeedSummary]:
        return downstream_accuracy(
            train,
            test,
            classifiers=classifiers,
            protocol=protocol,
            seeds=range(seeds),
            device=device,
            processes=processes,
        )

    found = accuracies(samples)
    levels = {summary.model: {CHANCE: guessing(test)} for summary in found}
    for level, images in others.items():
        for summary in accuracies(at_random(images, len(samples))):
            levels[summary.model][level] = summary.mean
    rows = tuple(_row(summary, levels[summary.model]) for summary in found)
    return Downstream(
        test=test_name,
        test_count=len(test),
        protocol=protocol.name,
        settings=protocol.to_dict(),
        results=rows,
        test_from_training_files=bool((test.meta or {}).get("from_training_files")),
    )


def _row(summary: SeedSummary, levels: Mapping[str, float]) -> DownstreamRow:
    note = SELECTIONS[summary.selection]
    content = {**asdict(summary), "name": DISPLAY_NAMES[summary.model], "note": note, "levels": levels}
    return build(DownstreamRow, content, summary.model)


def guessing(test: SampleSet) -> float:
    """Accuracy of always answering the most frequent class of the test images, 0 to 1."""
    assert test.labels is not None
    return float(test.labels.bincount().max()) / len(test)


def at_random(images: SampleSet, count: int, seed: int = 0) -> SampleSet:
    """A random choice of `count` images, or all of them when there are fewer."""
    if len(images) <= count:
        return images
    return images.subset(torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count])
