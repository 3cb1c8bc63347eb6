"""The page of one evaluation: images, scores, classifiers, privacy, and how every number was made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ldm.evaluation.page.charts import bars, lines
from ldm.evaluation.page.html import Html, cards, details, facts, number, page, paragraph, section, strip, table, text

ARROWS = {"lower": "↓", "higher": "↑"}
#: Scores that are seen first, in this order, as far as they were measured.
HEADLINES = ("frechet", "kid", "precision", "recall", "density", "coverage", "inception_score")
SHOWN_CLASSES = 20
UNCOVERED = (
    "These numbers were computed from the real images. Where those are the private records, the guarantee of the"
    " release does not cover the numbers, and publishing them says something about the records."
)


@dataclass(frozen=True)
class ImageRows:
    """Rows of images by class name ("" for images without labels): generated ones, and real ones when the person
    who made the report asked for them. left_out counts classes that are not shown."""

    samples: Mapping[str, Tensor]
    real: Mapping[str, Tensor]
    left_out: int = 0


def evaluation_page(result: Mapping[str, Any], shown: ImageRows) -> str:
    """The whole HTML document for a result as `ldm.reports.evaluation` writes it (docs/evaluation.md)."""
    samples, real = result["samples"], result["real"]
    lead = f"{number(samples['count'])} samples against {number(real['count'])} real images: {real['source']}"
    return page(
        result["title"],
        [
            f"<header><h1>{text(result['title'])}</h1>",
            paragraph(lead, "lead"),
            paragraph(f"Made {result['created']}, suite {result['protocol']['suite']}.", "note"),
            "</header>",
            cards(headline_cards(result)),
            image_section(shown),
            score_section(result),
            downstream_section(result.get("downstream")),
            privacy_section(result.get("privacy")),
            memorisation_section(result.get("memorisation")),
            protocol_section(result),
            paragraph(
                "This page holds everything it shows; the same numbers are in evaluation.json beside it.", "note"
            ),
        ],
    )


def headline_cards(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What is seen first: (name, value, note)."""
    found = []
    for name in HEADLINES:
        score = result["scores"].get(name)
        if score:
            found.append((score["label"], number(score["value"]), f"{score['better']} is better"))
    for entry in (result.get("downstream") or {}).get("results", ()):
        found.append((f"Accuracy, {entry['name']}", percent(entry["mean"]), "on real images, higher is better"))
    privacy = result.get("privacy")
    if privacy:
        name, epsilon = first_epsilon(privacy)
        note = f"at δ = {privacy['delta']:g}" if privacy["private"] else "does not hold, see below"
        found.append((f"Privacy ε ({name})", number_or_word(epsilon), note))
    return found


def image_section(shown: ImageRows) -> str:
    """Generated images class by class, real ones beside them when there are any."""
    parts = []
    for name, images in shown.samples.items():
        heading = f"<h3>{text(name)}</h3>" if name else ""
        suffix = f" of {name}" if name else ""
        caption = "generated" if shown.real else ""
        both = strip(images, f"{len(images)} generated images{suffix}", caption=caption)
        if name in shown.real:
            real = shown.real[name]
            both += strip(real, f"{len(real)} real images{suffix}", caption="real")
        parts.append(f"<div>{heading}{both}</div>")
    warning = ""
    if shown.real:
        warning = paragraph(
            "This page shows real images. Where they are private, the page must not be published.", "warning"
        )
    more = paragraph(f"{shown.left_out} further classes are not shown.", "note") if shown.left_out else ""
    inside = f'<div class="{"pairs" if len(parts) > 1 else ""}">{"".join(parts)}</div>' if parts else ""
    return section("Images", warning, inside, more)


def score_section(result: Mapping[str, Any]) -> str:
    """Every score with its direction and how it was measured, distances by class, and what is missing."""
    rows = [
        (
            score["label"],
            number(score["value"]) + (f" ± {number(score['deviation'], 2)}" if score["deviation"] is not None else ""),
            direction(score["better"]),
            score["note"],
        )
        for score in result["scores"].values()
    ]
    scores = table(("score", "value", "better", "measured on"), rows, numbers=(1,))
    classes = result.get("per_class") or []
    chart = bars({row["name"]: row["frechet"] for row in classes[:40]}, "Distance by class")
    by_class = ""
    if classes:
        by_class = (
            "<h3>Distance by class</h3>"
            + paragraph("Fréchet distance between samples and real images of one class; shorter is better.", "note")
            + chart
            + details(
                "Numbers of all classes",
                table(
                    ("class", "distance", "samples", "real images"),
                    [
                        (row["name"], number(row["frechet"]), number(row["samples"]), number(row["real"]))
                        for row in classes
                    ],
                    numbers=(1, 2, 3),
                ),
            )
        )
    missing = result.get("not_measured") or {}
    skipped = ""
    if missing:
        skipped = "<h3>Not measured</h3>" + facts((name.replace("_", " "), why) for name, why in missing.items())
    forced = result["protocol"].get("forced")
    warning = paragraph(f"Compared by force although {forced}.", "warning") if forced else ""
    return section("Scores", warning, paragraph(UNCOVERED, "note"), scores, by_class, skipped)


def downstream_section(downstream: Mapping[str, Any] | None) -> str:
    """What classifiers that saw only samples score on real images."""
    if not downstream:
        return ""
    rows, curves = [], {}
    for entry in downstream["results"]:
        spread = f" ± {100 * entry['deviation']:.1f}" if len(entry["results"]) > 1 else ""
        epochs = ", ".join(f"{run['best_epoch']} of {run['epochs']}" for run in entry["results"])
        rows.append((entry["name"], percent(entry["mean"]) + spread, len(entry["results"]), epochs, entry["note"]))
        scored = [
            (at, 100 * epoch["validation_accuracy"])
            for at, epoch in enumerate(entry["results"][0]["curve"], 1)
            if epoch["validation_accuracy"] is not None
        ]
        curves[entry["name"]] = scored
    honest = all(entry["honest"] for entry in downstream["results"])
    warning = "" if honest else paragraph("An epoch was chosen on the real test images: see the table.", "warning")
    return section(
        "Classifiers trained on the samples",
        paragraph(
            f"Accuracy on {number(downstream['test_count'])} real images ({downstream['test']}) of classifiers"
            f" that were trained on samples only. Protocol: {downstream['protocol']}."
        ),
        warning,
        table(("classifier", "accuracy", "seeds", "epoch used", "how it was chosen"), rows, numbers=(1, 2)),
        lines(curves, "Accuracy while training", x="epoch", y="% of the images that choose the epoch (first seed)"),
        details("Every setting of the protocol", facts(_rows(downstream["settings"]))),
    )


def privacy_section(privacy: Mapping[str, Any] | None) -> str:
    """The privacy card's figures."""
    if not privacy:
        return ""
    plan, steps = privacy["plan"], privacy["steps"]
    epsilons = ", ".join(f"{number_or_word(value)} ({name})" for name, value in privacy["epsilon"].items())
    curve = lines({"ε": privacy.get("curve") or []}, "Privacy spent", x="step", y="epsilon", from_zero=True)
    return section(
        "Privacy",
        paragraph(privacy["statement"], "" if privacy["private"] else "warning"),
        facts(
            (
                ("ε by accountant", epsilons),
                ("δ", f"{privacy['delta']:g}"),
                ("neighbouring data sets", privacy["relation"].replace("_", " ")),
                ("a record is", privacy["record"]),
                ("noise multiplier σ", number(plan.get("noise_multiplier"))),
                ("clipping bound C", number(plan.get("max_grad_norm"))),
                ("sampling", f"{plan.get('sampling')}, rate {number(plan.get('sample_rate'))}"),
                ("expected batch", number(plan.get("expected_batch_size"))),
                ("noise draws a record", number(plan.get("noise_multiplicity"))),
                ("steps", f"{steps['taken']:,} taken of {steps['planned']:,} planned"),
                ("trained coordinates", number(privacy["trained_coordinates"])),
                ("random generator", privacy["rng"]),
                ("public data", "; ".join(privacy["public_data"]) or "none"),
                ("covered", "; ".join(privacy["covered"])),
                ("not covered", "; ".join(privacy["not_covered"]) or "nothing else left the run"),
            )
        ),
        curve,
    )


def memorisation_section(memorisation: Mapping[str, Any] | None) -> str:
    """Looks for copies of private images; their results are private themselves."""
    if not memorisation:
        return ""
    parts = [
        paragraph("Private: everything in this section was computed from the private images.", "warning"),
    ]
    for name, found in memorisation.items():
        parts.append(f"<h3>{text(name)}</h3>")
        if "verdict" in found:
            parts.append(paragraph(found["verdict"]))
        numbers = facts(_rows({key: found[key] for key in found if key not in ("curve", "verdict", "space")}))
        parts.append(details("Numbers", numbers))
        if found.get("curve"):
            both = {"attack": found["curve"], "guessing": [(0.0, 0.0), (1.0, 1.0)]}
            parts.append(lines(both, name, x="held-out images taken for members", y="members found"))
    return section("Memorisation", *parts)


def protocol_section(result: Mapping[str, Any]) -> str:
    """How every number was made, exactly."""
    protocol, samples = result["protocol"], result["samples"]
    subset = protocol["subset"]
    entries = (
        ("samples", f"{samples['source']}, {number(samples['count'])} images of {samples['size']}"),
        ("real images", f"{result['real']['source']}, {number(result['real']['count'])}"),
        ("pixels to features", protocol["policy"]),
        ("pairwise scores", f"{subset['samples']:,} samples, {subset['real']:,} real images, seed {subset['seed']}"),
    )
    return section(
        "Protocol",
        facts(entries),
        details("Every setting", facts(_rows({key: protocol[key] for key in protocol if key != "policy"}))),
        details("How the samples were made", facts(_rows(samples.get("meta") or {}))),
    )


def direction(better: str) -> str:
    """Which way is better, on one line."""
    return f"{better}\N{NO-BREAK SPACE}{ARROWS[better]}"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def first_epsilon(privacy: Mapping[str, Any]) -> tuple[str, Any]:
    """The tightest accountant's name and epsilon."""
    return next(iter(privacy["epsilon"].items()), ("none", "infinite"))


def number_or_word(value: Any) -> str:
    return value if isinstance(value, str) else number(value)


def _rows(values: Mapping[str, Any]) -> list[tuple[str, object]]:
    return [(key.replace("_", " "), _plain(value)) for key, value in _flat(values)]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as one list of named values."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key} ")
        else:
            found.append((f"{prefix}{key}", value))
    return found


def _plain(value: Any) -> object:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        if all(not isinstance(entry, Mapping | list | tuple) for entry in value):
            return ", ".join(map(str, value)) or "none"
        return Html(f"<pre>{text(json.dumps(list(value), indent=1, default=str))}</pre>")
    return "none" if value is None or value == "" else value
