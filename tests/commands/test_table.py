"""`dp-ldm` and `python -m ldm`: the list of commands, help of each, and refusals in one line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ldm.commands.table import COMMANDS, dispatch, usage
from ldm.errors import UserError


def test_every_command_has_a_module_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            dispatch([name, "--help"])
        assert stop.value.code == 0 and f"dp-ldm {name}" in capsys.readouterr().out


def test_the_list_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    dispatch([])
    assert capsys.readouterr().out.strip() == usage().strip()
    assert all(name in usage() for name in COMMANDS)


def test_an_unknown_command_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown command 'verfy'; did you mean 'verify'"):
        dispatch(["verfy"])


def test_the_module_is_the_command_and_starts_without_torch() -> None:
    code = (
        "import runpy, sys; sys.argv = ['dp-ldm']; runpy.run_module('ldm', run_name='__main__'); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: dp-ldm") and done.stdout.rstrip().endswith("False")
