"""The table of a benchmark: every measured row, with its spread and its cost."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from ldm.files import read_json
from ldm.reports.benchmark.stages import LARGEST_RESULT

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


def collect_rows(folder: Path) -> list[dict[str, Any]]:
    """Every measured row below a benchmark's folder, the private ones first; repeats of a row form one row."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("eps*/*/*.json")) + sorted(folder.glob("shared/*.json")):
        if path.stem not in NAMES:
            continue
        content = read_json(path, LARGEST_RESULT)
        epsilon = path.parts[-3].removeprefix("eps") if path.parent.name != "shared" else "-"
        for stage in BEFORE.get(path.stem, ()):
            other = path.with_name(f"{stage}.json")
            if other.is_file():
                earlier = read_json(other, LARGEST_RESULT)
                content["seconds"] += earlier.get("seconds", 0)
                content["peak_mib"] = max(content["peak_mib"], earlier.get("peak_mib", 0))
                content.setdefault("epsilon", earlier.get("epsilon"))
        found.setdefault((path.stem, epsilon), []).append(content)
    order = list(NAMES)
    rows = []
    for (key, epsilon), entries in sorted(found.items(), key=lambda item: (item[0][1], order.index(item[0][0]))):
        accuracies = [accuracy for entry in entries for accuracy in entry["accuracies"]]
        best = [max(entry["classifiers"].values()) for entry in entries if entry.get("classifiers")]
        rows.append(
            {
                "key": key,
                "name": NAMES[key],
                "epsilon": epsilon,
                "accuracies": accuracies,
                "mean": statistics.fmean(accuracies),
                "deviation": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
                "best": statistics.fmean(best) if best else None,
                "seconds": statistics.fmean(entry["seconds"] for entry in entries),
                "peak_mib": max(entry["peak_mib"] for entry in entries),
            }
        )
    return rows


def format_table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table: accuracy in percent, mean and deviation over runs.

    With several classifiers, the accuracy is their mean; another column has the best of them, averaged over runs. The
    best is chosen by the test images, as published tables do, and is no accuracy on unseen images.
    """
    several = any(row["best"] is not None for row in rows)
    head = (*HEAD[:3], BEST, *HEAD[3:]) if several else HEAD
    lines = [f"| {' | '.join(head)} |", "|" + "--|" * len(head)]
    for row in rows:
        spread = "" if row["deviation"] is None else f" ± {100 * row['deviation']:.2f}"
        best = "" if row["best"] is None else f"{100 * row['best']:.2f}"
        cells = (
            row["name"],
            row["epsilon"],
            f"{100 * row['mean']:.2f}{spread}",
            *((best,) if several else ()),
            str(len(row["accuracies"])),
            f"{row['seconds'] / 60:.0f}",
            str(row["peak_mib"]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
