"""Every `dp-ldm` line of README and docs names a command that exists, with flags that it knows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ldm.commands.table import COMMANDS, dispatch

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINES = sorted({line for page in PAGES for line in re.findall(r"^dp-ldm .*$", page.read_text(), re.MULTILINE)})


def test_the_pages_have_commands() -> None:
    assert {line.split()[1] for line in LINES} >= {"new", "train", "sample", "evaluate", "release", "verify", "export"}


@pytest.mark.parametrize("line", LINES)
def test_a_typed_command_is_known(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    _, command, *words = line.partition("#")[0].split()
    assert command in COMMANDS
    with pytest.raises(SystemExit):
        dispatch([command, "--help"])
    known = set(re.findall(r"--?[\w-]+", capsys.readouterr().out))
    assert {word for word in words if word.startswith("-")} <= known
