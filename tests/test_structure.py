"""Files and functions stay small enough to be read, the top folder stays short, and the library logs, not prints."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

import pytest

ROOT = Path(__file__).resolve().parents[1]
MAX_FILE, MAX_FUNCTION, MAX_LOOSE = 400, 60, 4

#: Functions that print although their name does not say so: the lineage gives them this task.
PRINTERS = {("ldm/util/__init__.py", "count_params"), ("callbacks/differential_privacy.py", "on_train_epoch_end")}


def sources() -> Iterator[tuple[str, str]]:
    for package in ("ldm", "callbacks"):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def functions(text: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def long_functions(name: str, text: str) -> list[str]:
    spans = ((node.name, (node.end_lineno or 0) - node.lineno + 1) for node in functions(text))
    return [f"{name}: {function} has {lines} lines" for function, lines in spans if lines > MAX_FUNCTION]


def calls_print(node: ast.AST) -> TypeGuard[ast.Call]:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"


def stray_prints(name: str, text: str) -> list[str]:
    """Lines that print, but for commands and functions whose name or `PRINTERS` say that they do."""
    if name.startswith("ldm/commands/"):
        return []
    tree = ast.parse(text)
    printers = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and (node.name.startswith("print_") or (name, node.name) in PRINTERS)
    ]
    allowed = {part for node in printers for part in ast.walk(node)}
    return [f"{name}:{node.lineno}" for node in ast.walk(tree) if calls_print(node) and node not in allowed]


def test_no_file_is_long() -> None:
    lengths = {name: len(text.splitlines()) for name, text in sources()}
    assert len(lengths) > 200
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FILE} == {}


def test_no_function_is_long() -> None:
    assert [line for name, text in sources() for line in long_functions(name, text)] == []


def test_the_top_folder_is_short() -> None:
    loose = {path.name for path in (ROOT / "ldm").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert len(loose) <= MAX_LOOSE, sorted(loose)


def test_the_library_does_not_print() -> None:
    assert [line for name, text in sources() for line in stray_prints(name, text)] == []


@pytest.mark.parametrize("name", ["ldm/x.py", "callbacks/x.py"])
def test_what_is_planted_is_found(name: str) -> None:
    body = "\n".join(["    x = 1"] * MAX_FUNCTION)
    assert long_functions(name, f"def f():\n{body}\n") and not long_functions(name, "def f():\n    x = 1\n")
    assert stray_prints(name, "def show():\n    print(1)\n") == [f"{name}:2"]
    assert stray_prints(name, "def print_it():\n    print(1)\n") == []
    assert stray_prints("ldm/commands/x.py", "print(1)\n") == []
