"""Several evaluations, read from their files and put side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from ldm.errors import UserError
from ldm.evaluation.page.comparison import Comparison, compare_results, comparison_page
from ldm.files import write_json, write_text
from ldm.reports.evaluation_files import read_result, read_sheet

COMPARISON_JSON, COMPARISON_PAGE = "comparison.json", "comparison.html"


def compare_evaluations(paths: Sequence[str], names: Sequence[str] | None, folder: str | Path) -> Comparison:
    """Read evaluations, write comparison.json and comparison.html into `folder`; returns the comparison.

    names: names of the runs; by default those of their folders (see `run_names`). Raises UserError.
    """
    if names is not None and len(names) != len(paths):
        raise UserError(f"{len(names)} names for {len(paths)} runs; give one a run with --names")
    runs = _numbered(list(names)) if names is not None else run_names(paths)
    results = {run: read_result(path) for run, path in zip(runs, paths, strict=True)}
    sheets = {run: image for run, path in zip(runs, paths, strict=True) if (image := read_sheet(path))}
    comparison = compare_results(results)
    document = comparison_page(comparison, results, sheets)
    folder = Path(folder)
    write_json(folder / COMPARISON_JSON, comparison.to_dict())
    write_text(folder / COMPARISON_PAGE, document)
    return comparison


def run_names(paths: Sequence[str]) -> list[str]:
    """A name for each run: its folder, with as many parent folders as the distinction needs.

    ["a/eps1/report", "a/eps10/report"] -> ["eps1", "eps10"]. Runs that share a folder are numbered.
    """
    folders = [Path(path).resolve() for path in paths]
    parts = [list((folder if folder.is_dir() else folder.parent).parts) for folder in folders]
    if len(set(map(tuple, parts))) > 1:
        while all(len(part) > 1 for part in parts) and len({part[-1] for part in parts}) == 1:
            parts = [part[:-1] for part in parts]  # a part common to all runs does not distinguish them
    depth = 1
    while depth < max(map(len, parts)) and _repeated(["/".join(part[-depth:]) for part in parts], parts):
        depth += 1
    return _numbered(["/".join(part[-depth:]) for part in parts])


def _repeated(names: list[str], parts: list[list[str]]) -> bool:
    """Whether one name stands for two different folders."""
    return len(set(names)) < len(set(map(tuple, parts)))


def _numbered(names: list[str]) -> list[str]:
    """The names, with a number appended from the second occurrence on."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return found


def format_comparison(comparison: Comparison) -> str:
    """A table for the terminal, one line a score; * marks the best run, = the runs that share the top."""
    runs = list(comparison.runs)
    width = max(12, *(len(run) + 2 for run in runs))
    first = max([36, *(len(score.label) for score in comparison.scores.values())])
    lines = [" " * first + "".join(f"{run:>{width}}" for run in runs)]
    for score in comparison.scores.values():
        cells = []
        for run in runs:
            mark = "*" if run == score.best else "=" if run in score.tied else ""
            cells.append(f"{score.runs[run].value:.4f}{mark}" if run in score.runs else "-")
        lines.append(f"{score.label:{first}}" + "".join(f"{cell:>{width}}" for cell in cells))
    if comparison.differences:
        lines.append(f"not measured alike: {', '.join(comparison.differences)}; no run is marked as the best")
    elif any(score.tied for score in comparison.scores.values()):
        lines.append("* best; = level: no run is ahead by more than the deviation of the difference")
    return "\n".join(lines)
