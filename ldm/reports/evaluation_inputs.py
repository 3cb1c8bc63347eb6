"""The images of an evaluation: its image sets, one pass through each, and the images of its page."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ldm.evaluation.features import FeatureExtractor
from ldm.evaluation.inputs.image_source import Batches, ImageSource
from ldm.evaluation.metrics.suite import Suite
from ldm.evaluation.metrics.summary import SetSummary, SummaryOptions, summarise
from ldm.evaluation.page.evaluation import SHOWN_CLASSES, ImageRows
from ldm.evaluation.result import PUBLIC, REAL, GeneratedSet, ImageSet
from ldm.samples import SampleSet

#: Images of each class, and of a set without labels, that a page shows.
SHOWN, SHOWN_UNLABELLED = 10, 60
UNLABELLED = -1


@dataclass(frozen=True)
class Sources:
    """The image sets of an evaluation, opened but not read; `test` and `public` may be absent."""

    samples: ImageSource
    real: ImageSource
    test: ImageSource | None
    public: ImageSource | None
    has_labels: bool  # of the samples


@dataclass(frozen=True)
class Summaries:
    """The result of one pass through each set: features of the samples, the real images and the sets of the levels,
    and the first images of every class."""

    samples: SetSummary
    real: SetSummary
    levels: Mapping[str, SetSummary]
    shown: Mapping[int, list[Tensor]]
    shown_real: Mapping[int, list[Tensor]]


class ImageCollector:
    """Keeps the first images of every class of a stream; label -1 means no label."""

    def __init__(self, classes: int = 2 * SHOWN_CLASSES) -> None:
        self.kept: dict[int, list[Tensor]] = {}
        self.classes = classes

    def watch(self, batches: Batches) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yields the same batches, and keeps the first images of every class."""
        for images, labels in batches:
            names = [UNLABELLED] * len(images) if labels is None else labels.tolist()
            for image, label in zip(images, names, strict=True):
                room = SHOWN_UNLABELLED if label < 0 else SHOWN
                if len(self.kept.get(label, ())) < room and (label in self.kept or len(self.kept) < self.classes):
                    self.kept.setdefault(label, []).append(image.clone())
            yield images, labels
        self.kept = dict(sorted(self.kept.items()))


def summarise_sets(
    sources: Sources,
    extractor: FeatureExtractor,
    options: SummaryOptions,
    *,
    batch_size: int,
    show_real: bool,
    real_level: bool,
) -> Summaries:
    """Read every set once. real_level: held-out real images (`sources.test`) are the level of real images."""

    def summary(source: ImageSource, collector: ImageCollector | None = None) -> SetSummary:
        batches = source.batches(batch_size)
        watched = batches if collector is None else collector.watch(batches)
        return summarise(watched, extractor, options, source=source.name)

    shown, shown_real = ImageCollector(), ImageCollector()
    real = summary(sources.real, shown_real if show_real else None)
    samples = summary(sources.samples, shown)
    others = {REAL: sources.test if real_level else None, PUBLIC: sources.public}
    levels = {name: summary(source) for name, source in others.items() if source is not None}
    return Summaries(samples, real, levels, shown.kept, shown_real.kept)


def read_all(source: ImageSource, batch_size: int) -> SampleSet:
    """All images of a source in memory, as the classifiers need them."""
    images, labels = zip(*source.batches(batch_size), strict=True)
    found = [part for part in labels if part is not None]
    return SampleSet(torch.cat(images), torch.cat(found) if found else None)


def class_namer(suite: Suite, own: ImageSource, other: ImageSource) -> Callable[[int], str]:
    """label -> name: from the images themselves, else from the suite, else from the other image set."""
    return replace(suite, class_names=own.class_names or suite.class_names or other.class_names).class_name


def image_set(source: ImageSource, summary: SetSummary, name_class: Callable[[int], str]) -> ImageSet:
    """The description of an image set for the result."""
    classes = {name_class(label): count for label, count in summary.classes.items()}
    return ImageSet(source.name, summary.statistics.count, summary.statistics.size, classes)


def generated_set(source: ImageSource, summary: SetSummary, name_class: Callable[[int], str]) -> GeneratedSet:
    """The description of the samples for the result, with the metadata of their file."""
    return GeneratedSet(**vars(image_set(source, summary, name_class)), meta=dict(source.meta))


def image_rows(summaries: Summaries, name_class: Callable[[int], str], name_real: Callable[[int], str]) -> ImageRows:
    """The images of the page by class name, for the classes of the samples only."""

    def by_name(shown: Mapping[int, list[Tensor]], namer: Callable[[int], str]) -> dict[str, Tensor]:
        return {namer(label) if label >= 0 else "": torch.stack(found) for label, found in shown.items()}

    samples = by_name(summaries.shown, name_class)
    real = by_name(summaries.shown_real, name_real)
    return ImageRows(
        dict(list(samples.items())[:SHOWN_CLASSES]),
        {name: images for name, images in real.items() if name in samples},
        left_out=max(len(summaries.samples.classes) - SHOWN_CLASSES, 0),
    )
