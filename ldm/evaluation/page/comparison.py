"""Several evaluations side by side, as plain values and as a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ldm.evaluation.page.charts import bars, lines
from ldm.evaluation.page.evaluation import UNCOVERED, direction, first_epsilon, number_or_word, percent
from ldm.evaluation.page.html import cards, facts, image_tag, number, page, paragraph, section, table, text

FORMAT = "latent diffusion comparison"
VERSION = 1
#: What has to be the same in two protocols for their scores to be compared.
ALIKE = ("forced", "extractor", "weights", "resize", "quantize", "size", "real", "real_count", "samples_count")

#: Quality is drawn against epsilon when the greatest epsilon is this many times the least.
SPREAD = 1.1


def compare_results(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Plain values for JSON: every score by run, the best run of each, and what the runs did differently.

    results: evaluation results by the name of their run. A best run is named only among runs that were measured alike.
    """
    differences = _differences(results)
    scores: dict[str, dict[str, Any]] = {}
    for run, result in results.items():
        for name, score in result["scores"].items():
            entry = scores.setdefault(name, {"label": score["label"], "better": score["better"], "runs": {}})
            entry["runs"][run] = {"value": score["value"], "deviation": score["deviation"]}
        for found in (result.get("downstream") or {}).get("results", ()):
            entry = scores.setdefault(
                f"accuracy_{found['model']}", {"label": f"Accuracy, {found['name']}", "better": "higher", "runs": {}}
            )
            spread = found["deviation"] if len(found["results"]) > 1 else None
            entry["runs"][run] = {"value": found["mean"], "deviation": spread}
    for entry in scores.values():
        entry["best"] = None if differences else _best(entry)
    privacy = {
        run: {
            "statement": result["privacy"]["statement"],
            "private": result["privacy"]["private"],
            "accountant": first_epsilon(result["privacy"])[0],
            "epsilon": first_epsilon(result["privacy"])[1],
            "delta": result["privacy"]["delta"],
        }
        if result.get("privacy")
        else None
        for run, result in results.items()
    }
    return {
        "format": FORMAT,
        "version": VERSION,
        "runs": {run: {"title": result["title"], "created": result["created"]} for run, result in results.items()},
        "scores": scores,
        "privacy": privacy,
        "differences": differences,
    }


def _best(entry: Mapping[str, Any]) -> str | None:
    if len(entry["runs"]) < 2:
        return None
    choose = min if entry["better"] == "lower" else max
    return choose(entry["runs"], key=lambda run: entry["runs"][run]["value"])


def _differences(results: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Settings that are not the same in all runs, with each run's value."""
    found = {}
    for key in ALIKE:
        values = {run: _setting(result, key) for run, result in results.items()}
        if len({str(value) for value in values.values()}) > 1:
            found[key] = values
    return found


def _setting(result: Mapping[str, Any], key: str) -> Any:
    if key in ("real", "real_count"):
        return result["real"]["source" if key == "real" else "count"]
    if key == "samples_count":
        return result["samples"]["count"]
    return result["protocol"].get(key)


def comparison_page(
    comparison: Mapping[str, Any], results: Mapping[str, Mapping[str, Any]], sheets: Mapping[str, Image.Image]
) -> str:
    """The HTML document for `compare_results`; sheets: an image of samples of each run that has one."""
    runs = list(comparison["runs"])
    title = f"{len(runs)} evaluations side by side"
    return page(
        title,
        [
            f"<header><h1>{text(title)}</h1>",
            paragraph(", ".join(runs), "lead"),
            "</header>",
            cards(_cards(comparison)),
            _warning(comparison),
            _scores(comparison, runs),
            _trade_off(comparison),
            _privacy(comparison),
            section("Samples", *(_sheet(run, sheets[run]) for run in runs if run in sheets)),
            section(
                "Protocols",
                *(
                    f"<h3>{text(run)}</h3>"
                    + facts(
                        (
                            ("samples", f"{results[run]['samples']['source']} ({results[run]['samples']['count']:,})"),
                            ("real images", f"{results[run]['real']['source']} ({results[run]['real']['count']:,})"),
                            ("pixels to features", results[run]["protocol"]["policy"]),
                        )
                    )
                    for run in runs
                ),
            ),
            paragraph(
                "This page holds everything it shows; the same numbers are in comparison.json beside it.", "note"
            ),
        ],
    )


def _cards(comparison: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [
        (f"Best {entry['label']}", _value(name, entry["runs"][entry["best"]]["value"]), entry["best"])
        for name, entry in comparison["scores"].items()
        if entry["best"] and (name in ("frechet", "kid", "precision", "recall") or name.startswith("accuracy_"))
    ]


def _warning(comparison: Mapping[str, Any]) -> str:
    if not comparison["differences"]:
        return ""
    names = ", ".join(key.replace("_", " ") for key in comparison["differences"])
    rows = [
        (key.replace("_", " "), *(str(value) for value in values.values()))
        for key, values in comparison["differences"].items()
    ]
    return paragraph(f"The runs were not measured alike ({names}), so no run is called the best.", "warning") + table(
        ("differs", *comparison["runs"]), rows
    )


def _value(name: str, value: float) -> str:
    return percent(value) if name.startswith("accuracy_") else number(value)


def _scores(comparison: Mapping[str, Any], runs: Sequence[str]) -> str:
    rows, best, charts = [], [], []
    for at, (name, entry) in enumerate(comparison["scores"].items()):
        cells = []
        for column, run in enumerate(runs, 2):
            score = entry["runs"].get(run)
            if score is None:
                cells.append("–")
                continue
            cells.append(_with_spread(name, score))
            if entry["best"] == run:
                best.append((at, column))
        rows.append((entry["label"], direction(entry["better"]), *cells))
        if name in ("frechet", "kid", "precision", "recall", "coverage") or name.startswith("accuracy_"):
            values = {run: max(entry["runs"][run]["value"], 0.0) for run in runs if run in entry["runs"]}
            charts.append(f"<div><h3>{text(entry['label'])}</h3>{bars(values, entry['label'])}</div>")
    numbers = range(2, 2 + len(runs))
    return section(
        "Scores",
        paragraph(UNCOVERED, "note"),
        table(("score", "better", *runs), rows, numbers=numbers, best=best),
        f'<div class="pairs">{"".join(charts)}</div>' if len(runs) > 1 else "",
    )


def _with_spread(name: str, score: Mapping[str, Any]) -> str:
    shown = _value(name, score["value"])
    if score["deviation"] is None:
        return shown
    spread = f"{100 * score['deviation']:.1f}" if name.startswith("accuracy_") else number(score["deviation"], 2)
    return f"{shown} ± {spread}"


def _trade_off(comparison: Mapping[str, Any]) -> str:
    """Quality by epsilon, where two runs or more have an epsilon."""
    epsilons = {
        run: card["epsilon"]
        for run, card in comparison["privacy"].items()
        if card and isinstance(card["epsilon"], int | float)
    }
    if len(epsilons) < 2 or comparison["differences"] or max(epsilons.values()) < SPREAD * min(epsilons.values()):
        return ""
    charts = []
    for name, entry in comparison["scores"].items():
        if name != "frechet" and not name.startswith("accuracy_"):
            continue
        scale = 100 if name.startswith("accuracy_") else 1
        shared = [run for run in epsilons if run in entry["runs"]]
        points = sorted((epsilons[run], scale * entry["runs"][run]["value"]) for run in shared)
        charts.append(lines({entry["label"]: points}, "By epsilon", x="ε", y=entry["label"]))
    return section("Quality and privacy", f'<div class="pairs">{"".join(charts)}</div>')


def _privacy(comparison: Mapping[str, Any]) -> str:
    rows = [
        (run, number_or_word(card["epsilon"]), card["accountant"], f"{card['delta']:g}", card["statement"])
        if card
        else (run, "–", "", "", "no privacy card was given")
        for run, card in comparison["privacy"].items()
    ]
    if not any(comparison["privacy"].values()):
        return ""
    return section("Privacy", table(("run", "ε", "accountant", "δ", "statement"), rows, numbers=(1, 3)))


def _sheet(run: str, image: Image.Image) -> str:
    scale = 2 if image.width <= 400 else 1
    return f"<h3>{text(run)}</h3>" + image_tag(image, f"generated images of {run}", scale=scale)
