"""The files of an evaluation: evaluation.json, report.html and a sheet of samples, and a table for the terminal."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

from ldm import files
from ldm.errors import UserError
from ldm.evaluation.page.evaluation import ImageRows, accuracy_verdict, evaluation_page
from ldm.evaluation.page.images import sheet
from ldm.evaluation.page.verdicts import verdict
from ldm.evaluation.result import EvaluationResult
from ldm.files import check_writable, write_atomic, write_json, write_text

JSON_NAME, PAGE_NAME, SHEET_NAME = "evaluation.json", "report.html", "samples.png"
#: Key of evaluation.json for the SHA-256 of its other keys.
SEAL = "sha256"
LARGEST = 2**26  # bytes of a JSON file
#: Columns of the sheet, and its greatest number of samples.
COLUMNS, ON_SHEET = 10, 200


def write_evaluation(result: EvaluationResult, images: ImageRows, folder: str | Path) -> None:
    """Write a sheet of samples, report.html and evaluation.json into `folder`, each file atomically.

    evaluation.json comes last: comparisons and releases read it, so it stands for an evaluation that is whole.
    """
    folder = Path(folder)
    document = evaluation_page(result, images)
    content = result.to_dict()
    rows = list(images.samples.values())
    full = [row[:COLUMNS] for row in rows if len(row) >= COLUMNS]
    every = rows[0] if len(rows) == 1 else torch.cat(full or rows)
    image = sheet(every[:ON_SHEET], columns=COLUMNS)
    write_atomic(folder / SHEET_NAME, lambda path: image.save(path, format="PNG"))
    write_text(folder / PAGE_NAME, document)
    write_json(folder / JSON_NAME, {**content, SEAL: _seal(content)})


def check_output_folder(folder: str | Path) -> None:
    """Raise UserError when `folder` cannot be written, before a long computation."""
    if Path(folder).is_file():
        raise UserError(f"--output {folder} is a file; name a folder")
    check_writable(Path(folder), "--output")


def read_json(path: str | Path, writer: str) -> Any:
    """The content of a JSON file. Raises UserError that names the file, and the command that writes such files."""
    if not Path(path).exists():
        raise UserError(f"{path}: no such file; {writer}")
    return files.read_json(path, LARGEST)


def read_result(path: str | Path) -> EvaluationResult:
    """An evaluation from its JSON file, or from a folder that holds one. Raises UserError that names the file."""
    path = Path(path)
    if path.is_dir():
        found = [path / JSON_NAME] if (path / JSON_NAME).is_file() else sorted(path.rglob(JSON_NAME))
        if len(found) != 1:
            several = f"{len(found)} of them below; name one" if found else "write it with scripts/evaluate.py"
            raise UserError(f"{path}: no {JSON_NAME} here ({several})")
        path = found[0]
    content = read_json(path, "write it with scripts/evaluate.py")
    content = dict(content) if isinstance(content, dict) else {}
    seal = content.pop(SEAL, None)
    result = EvaluationResult.from_dict(content, str(path))
    if seal is not None and seal != _seal(content):
        raise UserError(f"{path}: was changed after it was written (its {SEAL} is of other content); evaluate again")
    return result


def _seal(content: Any) -> str:
    """SHA-256 of plain values, independent of the layout of their file."""
    plain = json.loads(json.dumps(content))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


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


def format_result(result: EvaluationResult) -> str:
    """A short table for the terminal: scores with deviation and verdict, accuracies, classes, missing metrics."""
    lines = []
    for score in result.scores.values():
        spread = "" if score.deviation is None else f" +- {score.deviation:.2g}"
        place = verdict(score.value, score.better, score.levels, deviation=score.deviation)
        lines.append(_line(score.label, f"{score.value:.4f}{spread}", place))
    for row in result.downstream.results if result.downstream else ():
        lines.append(_line(f"accuracy, {row.name}", f"{100 * row.mean:.2f} %", accuracy_verdict(row)))
    lines += [_line(f"  class {row.name}", f"{row.frechet:.4f}") for row in result.per_class]
    lines += [_line(name.replace("_", " "), f"not measured: {why}") for name, why in result.not_measured.items()]
    return "\n".join(lines)


def _line(name: str, value: str, place: str = "") -> str:
    return f"{name:36} {value}" + (f"  ({place})" if place else "")
