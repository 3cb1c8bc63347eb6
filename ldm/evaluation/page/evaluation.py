"""The page of one evaluation: images, scores, classifiers, privacy, and the settings of every measurement."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ldm.evaluation.page.charts import bars, lines
from ldm.evaluation.page.images import Figure, strip
from ldm.evaluation.page.render import (
    direction,
    flat_rows,
    number,
    percent,
    proved,
    render,
    spent,
    spent_delta,
    words,
)
from ldm.evaluation.page.verdicts import verdict
from ldm.evaluation.result import CHANCE, Downstream, DownstreamRow, EvaluationResult, PrivacySummary

#: The scores at the top of the page, in this order, if they were measured.
HEADLINES = ("frechet", "kid", "precision", "recall", "density", "coverage", "inception_score")
SHOWN_CLASSES = 20
CHART_CLASSES = 40
NOT_NUMBERS = ("curve", "verdict", "space")  # keys of a memorisation entry that other parts of the page show
#: Bounds among the numbers of a memorisation entry, which are not written as the nearest number.
BOUNDS = {"epsilon": spent, "delta": spent_delta, "allowed": spent, "least_epsilon": proved}


@dataclass(frozen=True)
class ImageRows:
    """Rows of images (N, 1 or 3, H, W) in [-1, 1] by class name ("" for images without labels): generated ones, and
    real ones when the user requested them. left_out: number of classes that are not shown."""

    samples: Mapping[str, Tensor]
    real: Mapping[str, Tensor]
    left_out: int = 0


@dataclass(frozen=True)
class Card:
    """A figure at the top of the page."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class ClassImages:
    """The figures of one class."""

    name: str
    figures: tuple[Figure, ...]


def evaluation_page(result: EvaluationResult, shown: ImageRows) -> str:
    """The whole HTML document of a result, without references to other files."""
    return render(
        "evaluation.html",
        title=result.title,
        result=result,
        cards=headline_cards(result),
        classes=class_images(shown),
        shows_real=bool(shown.real),
        left_out=shown.left_out,
        scores=score_rows(result),
        class_chart=bars({row.name: row.frechet for row in result.per_class[:CHART_CLASSES]}, "Distance by class"),
        classifiers=[classifier_row(row) for row in result.downstream.results] if result.downstream else [],
        accuracy_chart=accuracy_chart(result.downstream) if result.downstream else "",
        uses_test=result.downstream is not None and uses_test(result.downstream),
        privacy_facts=privacy_facts(result.privacy) if result.privacy else [],
        privacy_chart=privacy_chart(result.privacy) if result.privacy else "",
        memorisation=[memorisation_entry(name, found) for name, found in (result.memorisation or {}).items()],
        protocol_facts=protocol_facts(result),
        settings=protocol_settings(result),
    )


def headline_cards(result: EvaluationResult) -> list[Card]:
    """The figures at the top. A note compares the figure with known levels, else it names the better direction."""
    found = []
    for name in HEADLINES:
        if score := result.scores.get(name):
            place = verdict(score.value, score.better, score.levels, deviation=score.deviation)
            found.append(Card(words(score.label), number(score.value), _short(place) or f"{score.better} is better"))
    for row in result.downstream.results if result.downstream else ():
        note = accuracy_verdict(row)
        if not row.levels.keys() - {CHANCE}:
            note = f"on real images; {note}" if note else "on real images, higher is better"
        else:
            note = _short(note)
        found.append(Card(f"Accuracy, {row.name}", percent(row.mean), note))
    if result.privacy:
        name, epsilon = result.privacy.tightest
        note = f"at δ = {spent_delta(result.privacy.delta)}" if result.privacy.private else "does not hold, see below"
        found.append(Card(f"Privacy ε ({name})", spent(epsilon), note))
    return found


def _short(place: str) -> str:
    """A verdict without the values of its levels, because the table below shows them."""
    return re.sub(r" \([^)]*\)", "", place)


def accuracy_verdict(row: DownstreamRow) -> str:
    """The verdict on a classifier's accuracy, from the levels that are known."""
    spread = row.deviation if len(row.results) > 1 else None
    return verdict(row.mean, "higher", row.levels, deviation=spread, show=percent)


def class_images(shown: ImageRows) -> list[ClassImages]:
    """Generated images class by class, real ones beside them when there are any."""
    found = []
    for name, images in shown.samples.items():
        suffix = f" of {name}" if name else ""
        figures = [strip(images, f"{len(images)} generated images{suffix}", caption="generated" if shown.real else "")]
        if name in shown.real:
            real = shown.real[name]
            figures.append(strip(real, f"{len(real)} real images{suffix}", caption="real"))
        found.append(ClassImages(name, tuple(figures)))
    return found


def score_rows(result: EvaluationResult) -> list[tuple[str, ...]]:
    """Score, value with its spread, better direction, verdict, note on the measurement."""
    rows: list[tuple[str, ...]] = []
    for score in result.scores.values():
        spread = "" if score.deviation is None else f" ± {number(score.deviation, 2)}"
        place = verdict(score.value, score.better, score.levels, deviation=score.deviation)
        rows.append((words(score.label), number(score.value) + spread, direction(score.better), place, score.note))
    if not any(row[3] for row in rows):  # no level is known
        rows = [(*row[:3], row[4]) for row in rows]
    return rows


def classifier_row(row: DownstreamRow) -> tuple[object, ...]:
    """Classifier, accuracy with its spread, seeds, verdict, epochs, selection rule of the epoch."""
    spread = f" ± {100 * row.deviation:.1f}" if len(row.results) > 1 else ""
    epochs = ", ".join(f"{run.best_epoch} of {run.epochs}" for run in row.results)
    return row.name, percent(row.mean) + spread, len(row.results), accuracy_verdict(row), epochs, row.note


def uses_test(downstream: Downstream) -> bool:
    """Whether the epoch of a classifier was chosen by the images that score it."""
    return any(row.uses_test_for_selection for row in downstream.results)


def accuracy_chart(downstream: Downstream) -> str:
    """Accuracy of the first seed's epochs on the images that choose the epoch."""
    curves = {
        row.name: [
            (at, 100 * epoch.validation_accuracy)
            for at, epoch in enumerate(row.results[0].curve, 1)
            if epoch.validation_accuracy is not None
        ]
        for row in downstream.results
    }
    y = "% of the images that choose the epoch (first seed)"
    return lines(curves, "Accuracy while training", x="epoch", y=y)


def privacy_facts(privacy: PrivacySummary) -> list[tuple[str, str]]:
    """The privacy card's figures."""
    plan = privacy.plan
    return [
        ("ε by accountant", ", ".join(f"{spent(value)} ({name})" for name, value in privacy.epsilon.items())),
        ("δ", spent_delta(privacy.delta)),
        ("neighbouring data sets", words(privacy.relation)),
        ("a record is", privacy.record),
        ("noise multiplier σ", number(plan.get("noise_multiplier"))),
        ("clipping bound C", number(plan.get("max_grad_norm"))),
        ("sampling", f"{plan.get('sampling')}, rate {number(plan.get('sample_rate'))}"),
        ("expected batch", number(plan.get("expected_batch_size"))),
        ("noise multiplicity", number(plan.get("noise_multiplicity"))),
        ("steps", f"{privacy.steps.taken:,} taken of {privacy.steps.planned:,} planned"),
        ("values trained", number(privacy.trained_coordinates)),
        ("random generator", privacy.rng),
        ("public data", "; ".join(privacy.public_data) or "none"),
        ("covered", "; ".join(privacy.covered)),
        ("not covered", "; ".join(privacy.not_covered) or "nothing else left the run"),
    ]


def privacy_chart(privacy: PrivacySummary) -> str:
    """Epsilon by step."""
    return lines({"ε": privacy.curve}, "Privacy spent", x="step", y="epsilon", from_zero=True, show=spent)


def memorisation_entry(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """One memorisation test: its verdict, its numbers, and the curve of an attack."""
    chart = ""
    if found.get("curve"):
        both = {"attack": found["curve"], "guessing": [(0.0, 0.0), (1.0, 1.0)]}
        chart = lines(both, name, x="held-out images taken for members", y="members found")
    shown = {key: value for key, value in found.items() if key not in NOT_NUMBERS}
    bounds = {key: show(shown[key]) for key, show in BOUNDS.items() if shown.get(key) is not None}
    numbers = flat_rows({**shown, **bounds})
    return {"name": name, "verdict": found.get("verdict", ""), "numbers": numbers, "chart": chart}


def protocol_facts(result: EvaluationResult) -> list[tuple[str, str]]:
    """The two image sets of the comparison, and its main settings."""
    samples, subset = result.samples, result.protocol.subset
    return [
        ("samples", f"{samples.source}, {number(samples.count)} images of {samples.size}"),
        ("real images", f"{result.real.source}, {number(result.real.count)} images"),
        *(
            (f"level: {words(name)}", f"{level.source}, {number(level.count)} images")
            for name, level in result.levels.items()
        ),
        ("pixels to features", result.protocol.policy),
        ("pairwise scores", f"{subset.samples:,} samples, {subset.real:,} real images, seed {subset.seed}"),
    ]


def protocol_settings(result: EvaluationResult) -> list[tuple[str, object]]:
    """Every setting of the measurement."""
    return flat_rows(
        {
            **{
                name: value
                for name, value in vars(result.protocol).items()
                if name not in ("policy", "subset", "forced")
            },
            "forced": result.protocol.forced,
            "subset": vars(result.protocol.subset),
        }
    )
