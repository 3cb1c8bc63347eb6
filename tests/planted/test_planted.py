"""The table of planted bugs fits the code of today, and a sample of it is tried."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.planted.bug import RULES, PlantedBug
from tests.planted.table import BUGS

ROOT = Path(__file__).resolve().parents[2]


def is_slow(node: ast.stmt) -> bool:
    """Whether a function is decorated, or a module marked, as slow or for a GPU."""
    if isinstance(node, ast.FunctionDef):
        marks = [ast.unparse(decorator) for decorator in node.decorator_list]
        return any(mark in ("pytest.mark.slow", "pytest.mark.gpu") for mark in marks)
    return isinstance(node, ast.Assign) and "pytestmark" in ast.unparse(node) and "mark.slow" in ast.unparse(node)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_bug_applies_once_and_names_a_fast_test(bug: PlantedBug) -> None:
    compile(bug.changed(ROOT), bug.file, "exec")  # a bug that cannot even be imported proves nothing
    assert bug.new != bug.old and bug.rule in RULES and bug.why
    path, _, name = bug.test.partition("::")
    body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
    assert not any(is_slow(node) for node in body if isinstance(node, ast.Assign)), f"{path} is slow as a whole"
    (test,) = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == name.partition("[")[0]]
    assert not is_slow(test)


def test_no_bug_is_planted_twice_and_every_rule_has_some() -> None:
    assert max(Counter(bug.name for bug in BUGS).values()) == 1
    assert max(Counter((bug.file, bug.old, bug.new) for bug in BUGS).values()) == 1
    assert min(Counter(bug.rule for bug in BUGS)[rule] for rule in RULES) >= 10
    assert len(BUGS) >= 70


@pytest.mark.slow
def test_a_sample_of_ten_is_caught() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.planted.run", "--sample", "10"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0 and "10/10 planted bugs were caught" in done.stdout, done.stdout + done.stderr
