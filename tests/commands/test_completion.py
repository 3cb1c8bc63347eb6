"""The completion script in a real bash: commands, flags of a command, file names."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ldm.commands.table import COMMANDS, dispatch


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash here")
@pytest.mark.parametrize(
    ("typed", "expected"),
    [("dp-ldm ver", ["verify"]), ("dp-ldm verify --he", ["--help"]), ("dp-ldm train my", ["my-images.yaml"])],
)
def test_words_are_completed(
    typed: str, expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dispatch(["completion"])
    script = capsys.readouterr().out
    (tmp_path / "my-images.yaml").touch()
    words = typed.split()
    test = f"""
dp-ldm() {{ "{sys.executable}" -m ldm "$@"; }}
{script}
COMP_WORDS=({" ".join(words)}); COMP_CWORD={len(words) - 1}; _dp_ldm; printf '%s\\n' "${{COMPREPLY[@]}}" | sort -u
"""
    done = subprocess.run(["bash", "-c", test], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected


def test_every_command_is_offered(capsys: pytest.CaptureFixture[str]) -> None:
    dispatch(["completion"])
    assert " ".join(COMMANDS) in capsys.readouterr().out
