"""The metrics of a data set's customary evaluation, and what they say about two summaries."""

from __future__ import annotations

import statistics as arithmetic
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ldm.errors import UserError, nearest
from ldm.evaluation.metrics.frechet import frechet_distance
from ldm.evaluation.metrics.kid import kernel_distance
from ldm.evaluation.metrics.manifold import manifold_scores
from ldm.evaluation.metrics.statistics import compare, describe, require_alike
from ldm.evaluation.metrics.summary import SetSummary

METRICS = ("frechet", "kid", "precision_recall", "density_coverage", "inception_score", "per_class")
DIGITS = tuple("0123456789")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Suite:
    """Which metrics apply, which classifiers are trained on labelled samples, and what the classes are called."""

    name: str
    metrics: tuple[str, ...]
    classifiers: tuple[str, ...]
    class_names: tuple[str, ...] = ()

    def class_name(self, label: int) -> str:
        return self.class_names[label] if label < len(self.class_names) else str(label)


# An ImageNet classifier has nothing to say about digits or about one kind of object, so no Inception score there.
_WITHOUT_SCORE = tuple(name for name in METRICS if name != "inception_score")
SUITES: dict[str, Suite] = {
    "mnist": Suite("mnist", _WITHOUT_SCORE, ("logreg", "mlp", "cnn"), DIGITS),
    "cifar10": Suite("cifar10", METRICS, ("resnet-9", "wrn-40-4"), CIFAR10),
    "celeba": Suite("celeba", _WITHOUT_SCORE, ("resnet-9",)),
    "all": Suite("all", METRICS, ("logreg", "mlp", "cnn")),
}


def get_suite(name: str) -> Suite:
    """The suite called `name`. Raises UserError that lists the known ones."""
    if name not in SUITES:
        raise UserError(f"unknown suite {name!r}{nearest(name, SUITES)} (known: {', '.join(SUITES)})")
    return SUITES[name]


@dataclass(frozen=True)
class MeasureOptions:
    """kid_subsets draws of kid_subset_size images; neighbours of precision/recall and of density/coverage."""

    kid_subsets: int = 100
    kid_subset_size: int = 1000
    neighbours: int = 3
    density_neighbours: int = 5
    seed: int = 0
    force: bool = False


@dataclass(frozen=True)
class Score:
    """One number for a table: what it is called, which direction is better ("lower" or "higher"), its spread if it
    was repeated, and how it was measured."""

    value: float
    label: str
    better: str
    deviation: float | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Measurement:
    """Scores by metric, Fréchet distances by class, and why a metric is missing."""

    scores: dict[str, Score]
    per_class: dict[int, dict[str, float]]
    skipped: dict[str, str]


def measure(
    real: SetSummary,
    made: SetSummary,
    suite: Suite,
    options: MeasureOptions | None = None,
    device: torch.device | str = "cpu",
) -> Measurement:
    """Compare generated with real images by every metric of the suite; what cannot be measured is named, not faked.

    Raises UserError when the two summaries were made differently (unless `options.force`).
    """
    options = options or MeasureOptions()
    require_alike(real.statistics, made.statistics, force=options.force)
    scores: dict[str, Score] = {}
    skipped = {name: f"not part of the suite {suite.name}" for name in METRICS if name not in suite.metrics}
    parts = {
        "frechet": _frechet,
        "kid": _kid,
        "precision_recall": _manifold,
        "inception_score": _inception_score,
    }
    for name, part in parts.items():
        if name not in suite.metrics:
            continue
        try:
            scores.update(part(real, made, options, device))
        except UserError as error:
            skipped[name] = str(error)
    if "density_coverage" in suite.metrics and "precision_recall" in skipped:
        skipped["density_coverage"] = skipped["precision_recall"]
    per_class: dict[int, dict[str, float]] = {}
    if "per_class" in suite.metrics:
        per_class, problem = _per_class(real, made, options)
        if problem:
            skipped["per_class"] = problem
        elif per_class:
            name = describe(real.statistics, made.statistics)
            mean = arithmetic.fmean(row["frechet"] for row in per_class.values())
            fewest = int(min(min(row["samples"], row["real"]) for row in per_class.values()))
            note = f"{len(per_class)} classes, {fewest:,} images or more on each side"
            if fewest <= len(real.statistics.mu):
                note += f"; biased upwards for {len(real.statistics.mu):,} features"
            scores["frechet_class_mean"] = Score(mean, f"{name}, mean over classes", "lower", note=note)
    return Measurement(scores, per_class, skipped)


def _frechet(
    real: SetSummary, made: SetSummary, options: MeasureOptions, device: torch.device | str
) -> dict[str, Score]:
    distance = compare(made.statistics, real.statistics, force=True)  # what differs was refused or forced before
    note = f"{made.statistics.count:,} samples against {real.statistics.count:,} real images"
    fewest = min(made.statistics.count, real.statistics.count)
    if fewest <= len(real.statistics.mu):
        note += f"; biased upwards: {fewest:,} images for {len(real.statistics.mu):,} features"
    return {"frechet": Score(distance, describe(made.statistics, real.statistics), "lower", note=note)}


def _kid(real: SetSummary, made: SetSummary, options: MeasureOptions, device: torch.device | str) -> dict[str, Score]:
    found = kernel_distance(
        real.subset,
        made.subset,
        subsets=options.kid_subsets,
        subset_size=options.kid_subset_size,
        seed=options.seed,
        device=device,
    )
    label = "KID" if real.statistics.extractor == "inception" else f"Kernel distance ({real.statistics.extractor})"
    note = f"{found.subsets} subsets of {found.subset_size:,}; deviation over subsets"
    return {"kid": Score(found.value, label, "lower", found.deviation, note)}


def _manifold(
    real: SetSummary, made: SetSummary, options: MeasureOptions, device: torch.device | str
) -> dict[str, Score]:
    found = manifold_scores(
        real.subset, made.subset, k=options.neighbours, k_density=options.density_neighbours, device=device
    )
    sizes = f"{found.made:,} samples and {found.real:,} real images"
    first, second = f"{found.k} neighbours, {sizes}", f"{found.k_density} neighbours, {sizes}"
    return {
        "precision": Score(found.precision, "Precision", "higher", note=first),
        "recall": Score(found.recall, "Recall", "higher", note=first),
        "density": Score(found.density, "Density", "higher", note=second),
        "coverage": Score(found.coverage, "Coverage", "higher", note=second),
    }


def _inception_score(
    real: SetSummary, made: SetSummary, options: MeasureOptions, device: torch.device | str
) -> dict[str, Score]:
    found = made.inception_score
    if found is None:
        raise UserError(made.missing.get("inception_score", "no classifier"))
    extractor = made.statistics.extractor
    label = "Inception score" if extractor == "inception" else f"Inception score ({extractor})"
    note = f"{found.splits} splits of {found.count:,} samples; deviation over splits"
    return {"inception_score": Score(found.value, label, "higher", found.deviation, note)}


def _per_class(real: SetSummary, made: SetSummary, options: MeasureOptions) -> tuple[dict[int, dict[str, float]], str]:
    for summary, name in ((real, "real images"), (made, "samples")):
        if "per_class" in summary.missing:
            return {}, f"{name}: {summary.missing['per_class']}"
    shared = sorted(real.by_class.keys() & made.by_class.keys())
    if not shared:
        return {}, "no class has two images on both sides"
    rows = {}
    for label in shared:
        mine, theirs = made.by_class[label], real.by_class[label]
        rows[label] = {
            "frechet": frechet_distance(mine.mu, mine.sigma, theirs.mu, theirs.sigma),
            "samples": mine.count,
            "real": theirs.count,
        }
    return rows, ""
