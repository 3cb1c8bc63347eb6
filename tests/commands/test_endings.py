"""Every command that writes a file ends by saying what it wrote, and what to type next."""

from __future__ import annotations

import ast
import re
import shlex
import sys
from pathlib import Path

import pytest

from ldm.cli import print_end, print_part_end
from ldm.reports.sample_source import how_to_sample
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


#: Values in a shown command that are no path of the user's.
PLAIN = {"size", "chosen", "more"}
SHOWING = [*SCRIPTS, *(ROOT / "ldm/reports" / name for name in ("sample_source.py", "flags.py"))]
SHOWING += [ROOT / "ldm/training/driver.py", *(ROOT / "ldm/reports/sweep").glob("*.py")]


def unquoted(text: str) -> list[str]:
    """The values in a program's f-strings that stand in a command and are not `typed`."""
    found = []
    for joined in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.JoinedStr)):
        said = ""
        for part in joined.values:
            if isinstance(part, ast.Constant):
                said += str(part.value)
                continue
            value = part.value
            safe = isinstance(value, ast.Call) and getattr(value.func, "id", "") == "typed"
            shown = re.search(r"(?:dp-ldm [a-z]+|python \S+\.py) [^;:(#]*$", said)
            if shown and not safe and getattr(value, "id", "") not in PLAIN:
                found.append(ast.unparse(value))
            said += "X"
    return found


def test_what_to_type_next_works_in_a_folder_with_spaces() -> None:
    assert {path.name: unquoted(path.read_text(encoding="utf-8")) for path in SHOWING} == {
        path.name: [] for path in SHOWING
    }
    assert unquoted('f"dp-ldm train {out}; dp-ldm verify {typed(out)} {size}"') == ["out"]


def test_what_follows_a_command_is_a_comment(tmp_path: Path) -> None:
    for line in (how_to_sample(ROOT / "checkpoints/private/mnist-eps1"), how_to_sample(tmp_path / "a b")):
        words = shlex.split(line, comments=True)
        assert words[:2] == ["dp-ldm", "sample"] and words[3:] == ["--output", "samples.png"]
