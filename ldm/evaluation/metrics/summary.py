"""One pass over an image set that keeps the input of all metrics in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ldm.errors import UserError
from ldm.evaluation.features import Classifying, FeatureExtractor
from ldm.evaluation.metrics.inception_score import InceptionScore, RunningInceptionScore
from ldm.evaluation.metrics.statistics import FeatureStatistics, FeatureStream, RunningStatistics
from ldm.evaluation.metrics.subset import SeededSubset

#: Covariances of single classes are kept up to this many bytes in all.
CLASS_MEMORY = 2**30


@dataclass(frozen=True)
class SummaryOptions:
    """quantize: round to 8 bits first. subset: number of features kept for metrics of pairs. seed: chooses them.

    per_class: keep statistics of every class too. splits: number of splits of the Inception score.
    """

    quantize: bool = False
    subset: int = 10_000
    seed: int = 0
    per_class: bool = True
    splits: int = 10


@dataclass(frozen=True)
class SetSummary:
    """Summary of an image set: statistics of all images and of each class, and features of a seeded subset (n, D).

    classes: count by label. missing: the reason why a metric has no input, by metric.
    """

    statistics: FeatureStatistics
    subset: NDArray[np.float32]
    by_class: dict[int, FeatureStatistics] = field(default_factory=dict)
    classes: dict[int, int] = field(default_factory=dict)
    inception_score: InceptionScore | None = None
    missing: dict[str, str] = field(default_factory=dict)


def summarise(
    batches: Iterable[tuple[Tensor, Tensor | None]],
    extractor: FeatureExtractor,
    options: SummaryOptions | None = None,
    *,
    source: str = "",
) -> SetSummary:
    """Summarise batches of images (B, C, H, W) in [-1, 1] and labels (B,) or None in one pass.

    Memory: one (D, D) for all images, one per class, and `options.subset` rows, for any number of images.
    Raises UserError below two images or for features that are not finite.
    """
    options = options or SummaryOptions()
    stream = FeatureStream(extractor, quantize=options.quantize, source=source)
    subset = SeededSubset(options.subset, options.seed)
    by_class = _ByClass() if options.per_class else None
    score = RunningInceptionScore(options.splits) if isinstance(extractor, Classifying) else None
    classes: Counter[int] = Counter()
    for images, labels in batches:
        features = stream.update(images)
        subset.update(features)
        if labels is not None:
            classes.update(labels.tolist())
        if by_class is not None:
            by_class.update(features, labels)
        if score is not None:
            score.update(extractor.logits(features))  # type: ignore[attr-defined]
    statistics = stream.result()
    missing: dict[str, str] = {}
    result = None
    if score is None:
        missing["inception_score"] = f"the extractor {extractor.name} names no classes"
    else:
        try:
            result = score.result()
        except UserError as error:
            missing["inception_score"] = str(error)
    per_class: dict[int, FeatureStatistics] = {}
    if by_class is not None:
        if by_class.problem:
            missing["per_class"] = by_class.problem
        per_class = {
            label: stream.describe(running, f"{source}, class {label}")
            for label, running in sorted(by_class.running.items())
            if running.count > 1
        }
    return SetSummary(statistics, subset.rows, per_class, dict(sorted(classes.items())), result, missing)


class _ByClass:
    """Running statistics of each label, discarded when they would exceed `CLASS_MEMORY`."""

    def __init__(self) -> None:
        self.running: dict[int, RunningStatistics] = {}
        self.problem = ""

    def update(self, features: Tensor, labels: Tensor | None) -> None:
        if self.problem:
            return
        if labels is None:
            self.problem = "the images have no labels"
            return
        width = features.shape[1]
        for label in labels.unique().tolist():
            if label not in self.running:
                if (len(self.running) + 1) * width**2 * 8 > CLASS_MEMORY:
                    self.problem = f"the covariances of more than {len(self.running)} classes do not fit in 1 GiB"
                    self.running = {}
                    return
                self.running[label] = RunningStatistics(width)
            self.running[label].update(features[(labels == label).to(features.device)])
