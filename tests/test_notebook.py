"""``examples/quickstart.ipynb`` is a clean notebook whose cells compile, and it runs from top to bottom."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

from ldm.commands.table import COMMANDS

PATH = Path(__file__).resolve().parents[1] / "examples" / "quickstart.ipynb"


def code_cells() -> list[dict]:
    return [cell for cell in json.loads(PATH.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_cells_compile_and_hold_no_output() -> None:
    cells = code_cells()
    assert len(cells) > 6
    for cell in cells:
        ast.parse("".join(cell["source"]))
        assert cell["outputs"] == [] and cell["execution_count"] is None
    words = set(re.findall(r'dispatch\(\["(\w+)"', "".join("".join(cell["source"]) for cell in cells)))
    assert {"new", "audit", "train", "sample", "release", "verify"} <= words <= set(COMMANDS)


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(PATH.parents[1]))
    notebook = nbformat.read(PATH, as_version=4)
    nbclient.NotebookClient(notebook, timeout=1200, kernel_name="python3").execute(cwd=str(tmp_path))
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "WILL NOT DO" in printed and "step 5 of 5 · ε" in printed and "every check passed" in printed
    assert "Epoch" not in printed and "Traceback" not in printed
