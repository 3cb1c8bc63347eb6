"""Every command that writes a file ends by saying what it wrote, and what to type next."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

from ldm.cli import print_end, print_part_end
from tests.tiny_runs import ROOT, Commands, commands

__all__ = ["commands"]

#: Functions that print the end of a command, and flags by which a command writes a file.
ENDS = {"print_end", "print_sampled", "print_trained", "print_scores", "draw"}
WRITES = re.compile(r'"--(output|outdir|plot|picture|write)"|add_output_flags|add_classifier_flags|add_trainer_flags')

SCRIPTS = [
    *(path for folder in ("scripts", "fid", "sampling", "ldm/commands") for path in (ROOT / folder).glob("*.py")),
    *(ROOT / name for name in ("main.py", "txt2img.py", "jobs/make_jobs.py")),
]


def calls(text: str) -> set[str]:
    """The names of all functions that a program calls."""
    found = (node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    return {getattr(function, "id", getattr(function, "attr", "")) for function in found}


def silent(text: str) -> bool:
    """Whether a program has a flag to write a file and calls nothing that says so at its end."""
    return bool(WRITES.search(text)) and not calls(text) & ENDS


def test_every_command_with_a_file_to_write_says_so() -> None:
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in SCRIPTS}
    assert sum(bool(WRITES.search(text)) for text in texts.values()) >= 25
    assert [name for name, text in texts.items() if silent(text)] == []


def test_a_silent_command_is_found() -> None:
    assert silent('parser.add_argument("--output")\nwrite(args.output)\n')
    assert not silent('parser.add_argument("--output")\nprint_end(args.output)\n')


def test_the_end_has_one_line_for_each_thing(capsys: pytest.CaptureFixture[str]) -> None:
    print_end(Path("a.pt"), "first", "second")
    print_part_end("b.pt")
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "written to a.pt" and rest[:2] == ["next: first", "      second"]
    assert rest[2] == "written to parts of b.pt" and rest[3].startswith("next: wait for the other parts")


def test_the_tests_refuse_a_command_that_writes_in_silence(commands: Commands) -> None:
    def main() -> None:
        Path(sys.argv[1]).write_text("x")

    with pytest.raises(AssertionError, match="not a word about it"):
        commands.type(main, "new.txt")
    assert commands.type(main, "new.txt") == 0, "nothing new"
