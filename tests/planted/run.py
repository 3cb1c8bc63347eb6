"""``python -m tests.planted.run``: plant each bug into a copy of the project, and see its test fail.

The named tests first run on the copy as it is, where they must pass. Then each bug is planted alone, its test is run in
a process of its own, and the file is put back. A bug counts as caught when pytest ran the test and it failed by what it
asserts; an import that fails, a test that is not found, a test that does not end and a bug that merely crashes are
errors. Libraries are imported once, before the processes part, so that a bug costs little more than its test.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.planted.bug import RULES, PlantedBug
from tests.planted.table import BUGS

ROOT = Path(__file__).resolve().parents[2]
#: What the tests need of the project.
PARTS = ("ldm", "callbacks", "benchmarks", "configs", "tests", "scripts", "main.py", "pyproject.toml")
#: Libraries that most of the tests import, the slow ones to load.
LIBRARIES = ("torch", "pytorch_lightning", "dp_accounting", "tensorboard", "scipy.stats", "omegaconf", "pytest")
#: Seconds after which a test is ended.
LIMIT = 240
PASSED, FAILED = 0, 1  # exit codes of pytest; others mean that the test did not run
#: What a planted bug ends in that is no working code: it proves nothing about the test.
CRASHES = ("NameError", "UnboundLocalError", "AttributeError", "TypeError", "ImportError", "ModuleNotFoundError")


def copy_project(target: Path) -> None:
    """Copy what the tests need, without compiled files."""
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target / name)


def run_tests(root: Path, nodes: Sequence[str], log: Path, limit: int = LIMIT) -> int:
    """Run pytest nodes on the project at ``root`` in a process of their own; its exit code, negative for a signal."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 70
    try:
        signal.alarm(limit)
        code = _run_here(root, nodes, log)
    finally:
        os._exit(code)


def _run_here(root: Path, nodes: Sequence[str], log: Path) -> int:
    with log.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    os.chdir(root)
    os.environ["PYTHONPATH"] = str(root)
    os.environ["COLUMNS"] = "400"  # pytest cuts its reasons off at the width of the terminal
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True  # a file that changes twice a second may keep its size and its time
    sys.path[:] = [str(root), *(path for path in sys.path if path and Path(path).resolve() != ROOT)]
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tests", "ldm", "callbacks")]:
        del sys.modules[name]
    import pytest

    import ldm

    if not Path(str(ldm.__file__)).is_relative_to(root):
        raise RuntimeError(f"{ldm.__file__} would be tested, not the copy in {root}")
    return int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "--no-header", "--tb=short", *nodes]))


def reason(log: Path) -> str:
    """Why the test failed, in pytest's words, from the first line of its summary."""
    lines = log.read_text(errors="replace").splitlines()
    return next((line.partition(" - ")[2] for line in lines if line.startswith(("FAILED ", "ERROR "))), "")


def is_caught(bug: PlantedBug, root: Path, log: Path) -> bool:
    """Plant the bug at ``root``, run its test, and put the file back; whether the test failed and nothing crashed."""
    path = root / bug.file
    sound = path.read_bytes()
    path.write_text(bug.changed(root), encoding="utf-8")
    try:
        return run_tests(root, [bug.test], log) == FAILED and not reason(log).startswith(CRASHES)
    finally:
        path.write_bytes(sound)


def chosen(names: Sequence[str], sample: int | None) -> list[PlantedBug]:
    """The bugs of these names, or a random sample, or all of them. Raises SystemExit for a name that does not exist."""
    unknown = set(names) - {bug.name for bug in BUGS}
    if unknown:
        raise SystemExit(f"error: no planted bug is called {sorted(unknown)[0]!r}; --list shows the names")
    bugs = [bug for bug in BUGS if not names or bug.name in names]
    return bugs if sample is None else random.sample(bugs, min(sample, len(bugs)))


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="python -m tests.planted.run", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", help="bugs to plant (default: all)")
    parser.add_argument("--sample", type=int, metavar="N", help="plant N of them, chosen at random")
    parser.add_argument("--reasons", action="store_true", help="show what each test failed with")
    parser.add_argument("--list", action="store_true", help="show the table and run nothing")
    parser.add_argument("--no-control", action="store_true", help="do not run the tests without any bug first")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Plant, print one line a bug and ``caught/planted`` at the end; 1 unless all were caught."""
    options = parse(words)
    bugs = chosen(options.names, options.sample)
    if options.list:
        for bug in bugs:
            print(f"{bug.name}: {bug.why}\n    rule {bug.rule} ({RULES[bug.rule]}); {bug.file}; {bug.test}")
        return 0
    for name in LIBRARIES:
        importlib.import_module(name)
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        root, log = Path(folder).resolve() / "project", Path(folder) / "output.txt"
        root.mkdir()
        copy_project(root)
        os.environ["XDG_CACHE_HOME"] = str(Path(folder) / "cache")
        if not options.no_control and run_tests(root, sorted({bug.test for bug in bugs}), log, 10 * LIMIT) != PASSED:
            print(log.read_text()[-4000:], "error: a named test does not pass without any bug", sep="\n")
            return 2
        caught = [bug for bug in bugs if report(bug, root, log, options.reasons)]
    print(f"{len(caught)}/{len(bugs)} planted bugs were caught")
    return 0 if len(caught) == len(bugs) else 1


def report(bug: PlantedBug, root: Path, log: Path, reasons: bool) -> bool:
    """Whether a bug is caught, with a line about it, and what the test said when it is not, or with ``reasons``."""
    started = time.monotonic()
    caught = is_caught(bug, root, log)
    word = "caught" if caught else "MISSED"
    print(f"{word}  rule {bug.rule}  {bug.name}  {time.monotonic() - started:.1f} s  {bug.test}", flush=True)
    if reasons:
        print(f"    {reason(log)}", flush=True)
    if not caught:
        print(log.read_text()[-1500:])
    return caught


if __name__ == "__main__":
    sys.exit(main())
