"""Several evaluations side by side, as plain values and as a page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from PIL import Image

from ldm.evaluation.page.charts import bars, lines
from ldm.evaluation.page.evaluation import Card
from ldm.evaluation.page.images import figure
from ldm.evaluation.page.render import direction, in_words, number, percent, render, spent, spent_delta, words
from ldm.evaluation.result import EvaluationResult

FORMAT = "latent diffusion comparison"
VERSION = 1
#: Scores of two runs are compared only if these settings are the same.
ALIKE = ("forced", "extractor", "weights", "resize", "quantize", "size", "real", "real_count", "samples_count")
#: Quality is drawn against epsilon when the greatest epsilon is at least this multiple of the least.
SPREAD = 1.1
CHARTS = ("frechet", "kid", "precision", "recall", "coverage")
CARDS = ("frechet", "kid", "precision", "recall")
SMALL_SHEET = 400  # pixels; a narrower sheet of samples is shown twice as large


@dataclass(frozen=True)
class Cell:
    """A score of one run, and its standard deviation over repetitions, if there are any."""

    value: float
    deviation: float | None


@dataclass(frozen=True)
class ComparedScore:
    """One score of all runs that have it.

    best: the run that beats every other by more than the deviation of their difference, if there is one. tied: the
    runs at the top otherwise; empty when there is a best run, and when the runs were measured differently.
    """

    label: str
    better: str
    runs: Mapping[str, Cell]
    best: str | None = None
    tied: tuple[str, ...] = ()
    share: bool = False  # written as percent

    def text(self, value: float) -> str:
        return percent(value) if self.share else number(value)


@dataclass(frozen=True)
class RunInfo:
    """A run's heading."""

    title: str
    created: str


@dataclass(frozen=True)
class RunPrivacy:
    """The statement of a run's privacy card, by its tightest accountant; epsilon may be "infinite"."""

    statement: str
    private: bool
    accountant: str
    epsilon: float | str
    delta: float


@dataclass(frozen=True)
class Comparison:
    """Scores and privacy by run, and the settings that differ between runs (with any, no run is marked as best)."""

    runs: Mapping[str, RunInfo]
    scores: Mapping[str, ComparedScore]
    privacy: Mapping[str, RunPrivacy | None]
    differences: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the format's name and version."""
        content = asdict(self)
        for score in content["scores"].values():
            del score["share"]
        return {"format": FORMAT, "version": VERSION, **content}


def compare_results(results: Mapping[str, EvaluationResult]) -> Comparison:
    """Compare evaluations, by the name of their run. A run is marked as best only if all were measured alike."""
    differences = _differences(results)
    scores = _scores_of(results)
    if not differences:
        scores = {name: _ranked(score) for name, score in scores.items()}
    return Comparison(
        {run: RunInfo(result.title, result.created) for run, result in results.items()},
        scores,
        {run: _privacy_of(result) for run, result in results.items()},
        differences,
    )


def _scores_of(results: Mapping[str, EvaluationResult]) -> dict[str, ComparedScore]:
    found: dict[str, ComparedScore] = {}

    def add(key: str, empty: ComparedScore, run: str, cell: Cell) -> None:
        entry = found.get(key, empty)
        found[key] = replace(entry, runs={**entry.runs, run: cell})

    for run, result in results.items():
        for name, score in result.scores.items():
            add(name, ComparedScore(score.label, score.better, {}), run, Cell(score.value, score.deviation))
        for row in result.downstream.results if result.downstream else ():
            empty = ComparedScore(f"Accuracy, {row.name}", "higher", {}, share=True)
            spread = row.deviation if len(row.results) > 1 else None
            add(f"accuracy_{row.model}", empty, run, Cell(row.mean, spread))
    return found


def _ranked(score: ComparedScore) -> ComparedScore:
    """The score with its best run, or the runs that share the top."""
    if len(score.runs) < 2:
        return score
    choose = min if score.better == "lower" else max
    first = choose(score.runs, key=lambda run: score.runs[run].value)
    level = tuple(run for run in score.runs if run == first or _level(score, first, run))
    return replace(score, best=first) if level == (first,) else replace(score, tied=level)


def _level(score: ComparedScore, first: str, second: str) -> bool:
    """Whether two runs differ by no more than the deviation of their difference, or are printed as the same number."""
    one, other = score.runs[first], score.runs[second]
    spread = math.hypot(one.deviation or 0.0, other.deviation or 0.0)
    return abs(one.value - other.value) <= spread or score.text(one.value) == score.text(other.value)


def _privacy_of(result: EvaluationResult) -> RunPrivacy | None:
    privacy = result.privacy
    if privacy is None:
        return None
    return RunPrivacy(privacy.statement, privacy.private, *privacy.tightest, privacy.delta)


def _differences(results: Mapping[str, EvaluationResult]) -> dict[str, dict[str, Any]]:
    """Settings that are not the same in all runs, with each run's value."""
    found = {}
    for key in ALIKE:
        values = {run: _setting(result, key) for run, result in results.items()}
        if len({str(value) for value in values.values()}) > 1:
            found[key] = values
    return found


def _setting(result: EvaluationResult, key: str) -> Any:
    others = {"real": result.real.source, "real_count": result.real.count, "samples_count": result.samples.count}
    return others[key] if key in others else getattr(result.protocol, key)


def comparison_page(
    comparison: Comparison, results: Mapping[str, EvaluationResult], sheets: Mapping[str, Image.Image]
) -> str:
    """The HTML document of a comparison; sheets: an image of samples of each run that has one."""
    runs = list(comparison.runs)
    rows, marks = _score_table(comparison, runs)
    return render(
        "comparison.html",
        title=f"{len(runs)} evaluations side by side",
        runs=runs,
        cards=_cards(comparison),
        differing=", ".join(map(words, comparison.differences)),
        differences=[(words(key), *map(str, found.values())) for key, found in comparison.differences.items()],
        scores=rows,
        marks=marks,
        charts=_charts(comparison) if len(runs) > 1 else [],
        trade_offs=_trade_offs(comparison),
        privacy=_privacy_rows(comparison),
        sheets=[
            (run, figure(sheets[run], f"generated images of {run}", scale=2 if sheets[run].width <= SMALL_SHEET else 1))
            for run in runs
            if run in sheets
        ],
        protocols=[
            (
                run,
                (
                    ("title", results[run].title),
                    ("samples", f"{results[run].samples.source} ({results[run].samples.count:,})"),
                    ("real images", f"{results[run].real.source} ({results[run].real.count:,})"),
                    ("pixels to features", results[run].protocol.policy),
                ),
            )
            for run in runs
        ],
    )


def _cards(comparison: Comparison) -> list[Card]:
    found = []
    for name, score in comparison.scores.items():
        if name not in CARDS and not score.share:
            continue
        if score.best:
            found.append(Card(f"Best {words(score.label)}", score.text(score.runs[score.best].value), score.best))
        elif score.tied:
            shown = score.text(score.runs[score.tied[0]].value)
            found.append(
                Card(f"Best {words(score.label)}", shown, f"level within the deviation: {', '.join(score.tied)}")
            )
    return found


def _score_table(
    comparison: Comparison, runs: Sequence[str]
) -> tuple[list[tuple[str, ...]], dict[tuple[int, int], str]]:
    """Rows of score, better direction and one column per run; marks "best" and "level" by (row, column)."""
    rows, marks = [], {}
    for at, score in enumerate(comparison.scores.values()):
        cells = []
        for column, run in enumerate(runs, 2):
            cells.append(_with_spread(score, score.runs[run]) if run in score.runs else "–")
            if run == score.best:
                marks[at, column] = "best"
            elif run in score.tied:
                marks[at, column] = "level"
        rows.append((words(score.label), direction(score.better), *cells))
    return rows, marks


def _with_spread(score: ComparedScore, cell: Cell) -> str:
    shown = score.text(cell.value)
    if cell.deviation is None:
        return shown
    return f"{shown} ± {100 * cell.deviation:.1f}" if score.share else f"{shown} ± {number(cell.deviation, 2)}"


def _charts(comparison: Comparison) -> list[tuple[str, str]]:
    return [
        (words(score.label), bars({run: max(cell.value, 0.0) for run, cell in score.runs.items()}, words(score.label)))
        for name, score in comparison.scores.items()
        if name in CHARTS or score.share
    ]


def _trade_offs(comparison: Comparison) -> list[str]:
    """Charts of quality by epsilon, if at least two runs have different epsilons."""
    epsilons = {
        run: card.epsilon for run, card in comparison.privacy.items() if card and isinstance(card.epsilon, int | float)
    }
    if len(epsilons) < 2 or comparison.differences or max(epsilons.values()) < SPREAD * min(epsilons.values()):
        return []
    charts: list[str] = []
    for name, score in comparison.scores.items():
        if name == "frechet" or score.share:
            scale = 100 if score.share else 1
            points = sorted((epsilons[run], scale * score.runs[run].value) for run in epsilons if run in score.runs)
            charts.append(lines({words(score.label): points}, "By epsilon", x="ε", y=words(score.label), show_x=spent))
    return charts


def _privacy_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    if not any(comparison.privacy.values()):
        return []
    return [
        (run, spent(card.epsilon), card.accountant, spent_delta(card.delta), in_words(card.statement))
        if card
        else (run, "–", "", "", "no privacy card was given")
        for run, card in comparison.privacy.items()
    ]
