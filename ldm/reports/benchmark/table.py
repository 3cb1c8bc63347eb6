"""The table of a benchmark: every measured row, with its spread and its cost."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ldm.files import read_json
from ldm.reports.benchmark.stages import LARGEST_RESULT, Result

HEAD = ("row", "epsilon", "accuracy", "runs", "minutes", "MiB")
BEST = "best classifier"  # a column of benchmarks with several classifiers, beside their mean
NAMES = {
    "score_labels": "private model's samples, private labels",
    "score": "private model's samples",
    "statistics": "its statistics alone, decoded draws",
    "warm": "its warmed-up model before DP-SGD",
    "direct": "classifier trained directly with DP",
    "linear": "linear classifier on wavelet features, trained directly with DP",
    "plain": "same training without privacy",
    "score_draw_labels": "all budget on statistics, decoded draws, private labels",
    "score_draws": "all budget on statistics, decoded draws",
    "score_model": "all budget on statistics, model trained on draws",
    "public": "public model alone",
    "real": "real images",
}
#: Stages whose time is added to a row's own.
BEFORE = {
    "score": ("private", "samples"),
    "score_labels": ("private", "samples"),
    "score_model": ("release", "further"),
    "score_draws": ("release",),
    "score_draw_labels": ("release",),
}


@dataclass(frozen=True)
class TableRow:
    """One row of a table: the accuracies (0 to 1) of all runs and classifier trainings, and their cost.

    ``key``: a key of `NAMES`. ``epsilon``: as it was typed, "-" for a row without it. ``best``: accuracy of the best of
    several classifiers, averaged over runs; None for one classifier. ``seconds``: mean over runs, earlier stages
    included. ``peak_mib``: largest memory of any run.
    """

    key: str
    epsilon: str
    accuracies: tuple[float, ...]
    best: float | None
    seconds: float
    peak_mib: int

    @property
    def name(self) -> str:
        """The row in words."""
        return NAMES[self.key]

    @property
    def mean(self) -> float:
        """Mean accuracy."""
        return statistics.fmean(self.accuracies)

    @property
    def deviation(self) -> float | None:
        """Standard deviation of the accuracies; None for a single one."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else None

    @classmethod
    def of(cls, key: str, epsilon: str, results: Sequence[Result]) -> TableRow:
        """The row of the results of one stage in all runs."""
        best = [max(result["classifiers"].values()) for result in results if result.get("classifiers")]
        return cls(
            key,
            epsilon,
            tuple(accuracy for result in results for accuracy in result["accuracies"]),
            statistics.fmean(best) if best else None,
            statistics.fmean(result["seconds"] for result in results),
            max(result["peak_mib"] for result in results),
        )


def collect_rows(folder: Path) -> list[TableRow]:
    """Every measured row below a benchmark's folder, the private ones first; repeats of a row form one row."""
    found: dict[tuple[str, str], list[Result]] = {}
    for path in sorted(folder.glob("eps*/*/*.json")) + sorted(folder.glob("shared/*.json")):
        if path.stem in NAMES:
            epsilon = path.parts[-3].removeprefix("eps") if path.parent.name != "shared" else "-"
            found.setdefault((epsilon, path.stem), []).append(_with_earlier_stages(path))
    order = list(NAMES)
    keys = sorted(found, key=lambda pair: (pair[0], order.index(pair[1])))
    return [TableRow.of(key, epsilon, found[epsilon, key]) for epsilon, key in keys]


def _with_earlier_stages(path: Path) -> Result:
    """The result of a stage, with the time and the memory of the stages that it needs (`BEFORE`)."""
    result: Result = read_json(path, LARGEST_RESULT)
    for stage in BEFORE.get(path.stem, ()):
        other = path.with_name(f"{stage}.json")
        if other.is_file():
            earlier = read_json(other, LARGEST_RESULT)
            result["seconds"] += earlier.get("seconds", 0)
            result["peak_mib"] = max(result["peak_mib"], earlier.get("peak_mib", 0))
    return result


def format_table(rows: Sequence[TableRow]) -> str:
    """The rows as a Markdown table: accuracy in percent, mean and deviation over runs.

    With several classifiers, the accuracy is their mean; another column has the best of them, averaged over runs. The
    best is chosen by the test images, as published tables do, and is no accuracy on unseen images.
    """
    several = any(row.best is not None for row in rows)
    head = (*HEAD[:3], BEST, *HEAD[3:]) if several else HEAD
    lines = [f"| {' | '.join(head)} |", "|" + "--|" * len(head)]
    for row in rows:
        spread = "" if row.deviation is None else f" ± {100 * row.deviation:.2f}"
        best = "" if row.best is None else f"{100 * row.best:.2f}"
        cells = (
            row.name,
            row.epsilon,
            f"{100 * row.mean:.2f}{spread}",
            *((best,) if several else ()),
            str(len(row.accuracies)),
            f"{row.seconds / 60:.0f}",
            str(row.peak_mib),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
