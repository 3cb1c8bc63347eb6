"""The customary metrics of a data set, and their computation from two summaries."""

from __future__ import annotations

import statistics as arithmetic
from dataclasses import dataclass

import torch

from ldm.errors import UserError, nearest
from ldm.evaluation.metrics.frechet import frechet_distance
from ldm.evaluation.metrics.kid import kernel_distance
from ldm.evaluation.metrics.manifold import manifold_scores
from ldm.evaluation.metrics.statistics import compare, describe, require_alike
from ldm.evaluation.metrics.summary import SetSummary
from ldm.evaluation.result import ScoreRow

METRICS = ("frechet", "kid", "precision_recall", "density_coverage", "inception_score", "per_class")
DIGITS = tuple("0123456789")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Suite:
    """The metrics that apply, the classifiers to train on labelled samples, and the names of the classes."""

    name: str
    metrics: tuple[str, ...]
    classifiers: tuple[str, ...]
    class_names: tuple[str, ...] = ()

    def class_name(self, label: int) -> str:
        return self.class_names[label] if label < len(self.class_names) else str(label)


# ImageNet classes are meaningless for digits or for one kind of object, so these suites have no Inception score.
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
    """kid_subsets subsets of kid_subset_size images; numbers of neighbours of precision/recall and density/coverage."""

    kid_subsets: int = 100
    kid_subset_size: int = 1000
    neighbours: int = 3
    density_neighbours: int = 5
    seed: int = 0
    force: bool = False


@dataclass(frozen=True)
class Measurement:
    """Scores by metric, Fréchet distances by class, and the reason for each missing metric."""

    scores: dict[str, ScoreRow]
    per_class: dict[int, dict[str, float]]
    skipped: dict[str, str]


def measure(
    real: SetSummary,
    generated: SetSummary,
    suite: Suite,
    options: MeasureOptions | None = None,
    device: torch.device | str = "cpu",
) -> Measurement:
    """Compare generated with real images by every metric of the suite; `skipped` lists the others with the reason.

    Raises UserError when the settings of the two summaries differ (unless `options.force`).
    """
    options = options or MeasureOptions()
    require_alike(real.statistics, generated.statistics, force=options.force)
    scores: dict[str, ScoreRow] = {}
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
            scores.update(part(real, generated, options, device))
        except UserError as error:
            skipped[name] = str(error)
    if "density_coverage" in suite.metrics and "precision_recall" in skipped:
        skipped["density_coverage"] = skipped["precision_recall"]
    per_class: dict[int, dict[str, float]] = {}
    if "per_class" in suite.metrics:
        per_class, problem = _per_class(real, generated)
        if problem:
            skipped["per_class"] = problem
        elif per_class:
            name = describe(real.statistics, generated.statistics)
            mean = arithmetic.fmean(row["frechet"] for row in per_class.values())
            fewest = int(min(min(row["samples"], row["real"]) for row in per_class.values()))
            note = f"{len(per_class)} classes, {fewest:,} images or more on each side"
            if fewest <= len(real.statistics.mu):
                note += f"; biased upwards for {len(real.statistics.mu):,} features"
            scores["frechet_class_mean"] = ScoreRow(mean, f"{name}, mean over classes", "lower", note=note)
    return Measurement(scores, per_class, skipped)


def _frechet(
    real: SetSummary, generated: SetSummary, options: MeasureOptions, device: torch.device | str
) -> dict[str, ScoreRow]:
    distance = compare(generated.statistics, real.statistics, force=True)  # settings were checked before
    note = f"{generated.statistics.count:,} samples against {real.statistics.count:,} real images"
    fewest = min(generated.statistics.count, real.statistics.count)
    if fewest <= len(real.statistics.mu):
        note += f"; biased upwards: {fewest:,} images for {len(real.statistics.mu):,} features"
    return {"frechet": ScoreRow(distance, describe(generated.statistics, real.statistics), "lower", note=note)}


def _kid(
    real: SetSummary, generated: SetSummary, options: MeasureOptions, device: torch.device | str
) -> dict[str, ScoreRow]:
    found = kernel_distance(
        real.subset,
        generated.subset,
        subsets=options.kid_subsets,
        subset_size=options.kid_subset_size,
        seed=options.seed,
    )
    label = "KID" if real.statistics.extractor == "inception" else f"Kernel distance ({real.statistics.extractor})"
    note = f"{found.subsets} subsets of {found.subset_size:,}; deviation over subsets"
    return {"kid": ScoreRow(found.value, label, "lower", found.deviation, note)}


def _manifold(
    real: SetSummary, generated: SetSummary, options: MeasureOptions, device: torch.device | str
) -> dict[str, ScoreRow]:
    found = manifold_scores(
        real.subset, generated.subset, k=options.neighbours, k_density=options.density_neighbours, device=device
    )
    sizes = f"{found.generated:,} samples and {found.real:,} real images"
    first, second = f"{found.k} neighbours, {sizes}", f"{found.k_density} neighbours, {sizes}"
    return {
        "precision": ScoreRow(found.precision, "Precision", "higher", note=first),
        "recall": ScoreRow(found.recall, "Recall", "higher", note=first),
        "density": ScoreRow(found.density, "Density", "higher", note=second),
        "coverage": ScoreRow(found.coverage, "Coverage", "higher", note=second),
    }


def _inception_score(
    real: SetSummary, generated: SetSummary, options: MeasureOptions, device: torch.device | str
) -> dict[str, ScoreRow]:
    found = generated.inception_score
    if found is None:
        raise UserError(generated.missing.get("inception_score", "no classifier"))
    extractor = generated.statistics.extractor
    label = "Inception score" if extractor == "inception" else f"Inception score ({extractor})"
    note = f"{found.splits} splits of {found.count:,} samples; deviation over splits"
    return {"inception_score": ScoreRow(found.value, label, "higher", found.deviation, note)}


def _per_class(real: SetSummary, generated: SetSummary) -> tuple[dict[int, dict[str, float]], str]:
    for summary, name in ((real, "real images"), (generated, "samples")):
        if "per_class" in summary.missing:
            return {}, f"{name}: {summary.missing['per_class']}"
    shared = sorted(real.by_class.keys() & generated.by_class.keys())
    if not shared:
        return {}, "no class has two images on both sides"
    rows = {}
    for label in shared:
        mine, theirs = generated.by_class[label], real.by_class[label]
        rows[label] = {
            "frechet": frechet_distance(mine.mu, mine.sigma, theirs.mu, theirs.sigma),
            "samples": mine.count,
            "real": theirs.count,
        }
    return rows, ""
