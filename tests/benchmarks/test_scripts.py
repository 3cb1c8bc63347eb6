"""Every benchmark can be imported, and those that are typed as files find the others from any folder."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "__init__")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_imports_only_what_is_there(name: str) -> None:
    importlib.import_module(f"benchmarks.{name}")


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_puts_the_project_on_the_path_before_it_imports_another_benchmark(name: str) -> None:
    """`python benchmarks/NAME.py` has only its own folder there, and another package may be called benchmarks, too."""
    text = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    siblings = [
        node.lineno
        for node in ast.parse(text).body
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "benchmarks"
    ]
    if siblings and "__main__" in text:
        lines = text.splitlines()[: min(siblings) - 1]
        assert any(line.startswith("sys.path.insert(0, ") for line in lines)
