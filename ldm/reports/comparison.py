"""Several evaluations, read from their files and put side by side."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ldm.errors import UserError
from ldm.evaluation.page.comparison import compare_results, comparison_page
from ldm.reports.evaluation import FORMAT, JSON_NAME, SHEET_NAME, VERSION, write_text

COMPARISON_JSON, COMPARISON_PAGE = "comparison.json", "comparison.html"


def read_result(path: str | Path) -> dict[str, Any]:
    """An evaluation from its JSON file, or from a folder that holds one. Raises UserError that names the file."""
    path = Path(path)
    if path.is_dir():
        found = [path / JSON_NAME] if (path / JSON_NAME).is_file() else sorted(path.rglob(JSON_NAME))
        if len(found) != 1:
            several = f"{len(found)} of them below; name one" if found else "write it with scripts/evaluate.py"
            raise UserError(f"{path}: no {JSON_NAME} here ({several})")
        path = found[0]
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; write it with scripts/evaluate.py") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not a readable JSON file") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: not an evaluation; scripts/evaluate.py writes {JSON_NAME}")
    if content.get("version") != VERSION:
        raise UserError(f"{path}: evaluation of version {content.get('version')!r}, this program reads {VERSION}")
    return content


def read_sheet(path: str | Path) -> Image.Image | None:
    """The sheet of samples that lies beside an evaluation, if there is a readable one."""
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    found = [folder / SHEET_NAME] if (folder / SHEET_NAME).is_file() else sorted(folder.rglob(SHEET_NAME))
    try:
        with Image.open(found[0]) as image:
            return image.copy()
    except (IndexError, UnidentifiedImageError, OSError):
        return None


def compare_evaluations(paths: Sequence[str], names: Sequence[str] | None, folder: str | Path) -> dict[str, Any]:
    """Read evaluations, write `comparison.json` and `comparison.html` into `folder`; returns the comparison.

    names: what to call the runs, else their titles (numbered when two are the same). Raises UserError.
    """
    if names is not None and len(names) != len(paths):
        raise UserError(f"{len(names)} names for {len(paths)} runs; give one a run with --names")
    results = [read_result(path) for path in paths]
    titles = _distinct(list(names) if names is not None else [result["title"] for result in results])
    by_name = dict(zip(titles, results, strict=True))
    sheets = {title: image for title, path in zip(titles, paths, strict=True) if (image := read_sheet(path))}
    comparison = compare_results(by_name)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    content = json.dumps(comparison, indent=2, allow_nan=False, ensure_ascii=False)
    document = comparison_page(comparison, by_name, sheets)
    write_text(folder / COMPARISON_JSON, content + "\n")
    write_text(folder / COMPARISON_PAGE, document)
    return comparison


def format_comparison(comparison: dict[str, Any]) -> str:
    """A table for the terminal, one line a score; * marks the best run."""
    runs = list(comparison["runs"])
    width = max(12, *(len(run) + 2 for run in runs))
    lines = [f"{'':36}" + "".join(f"{run:>{width}}" for run in runs)]
    for entry in comparison["scores"].values():
        cells = []
        for run in runs:
            score = entry["runs"].get(run)
            shown = "-" if score is None else f"{score['value']:.4f}{'*' if entry['best'] == run else ''}"
            cells.append(f"{shown:>{width}}")
        lines.append(f"{entry['label']:36}" + "".join(cells))
    if comparison["differences"]:
        lines.append(f"not measured alike: {', '.join(comparison['differences'])}; no run is marked as the best")
    return "\n".join(lines)


def _distinct(titles: list[str]) -> list[str]:
    seen: dict[str, int] = {}
    distinct = []
    for title in titles:
        seen[title] = seen.get(title, 0) + 1
        distinct.append(title if seen[title] == 1 else f"{title} ({seen[title]})")
    return distinct
