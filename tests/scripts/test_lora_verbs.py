"""The commands on files with adapters: what a person types, and one line for a mistake."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from ldm.checkpoint import read_checkpoint
from ldm.checkpoint.lora_names import layers_of, style_of
from tests.checkpoint.test_adapters import trained

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return trained(tmp_path_factory.mktemp("verbs"))


def type_(monkeypatch: pytest.MonkeyPatch, verb: str, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [verb, *map(str, words)])
    runpy.run_path(str(SCRIPTS / verb), run_name="__main__")


def test_taking_out_renaming_and_merging(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    public, last = files
    adapter, peft, merged = (tmp_path / name for name in ("adapter.safetensors", "peft.ckpt", "merged.safetensors"))
    type_(monkeypatch, "convert_ckpt_lora.py", "--ckpt", last, "--to", "adapter", "-o", adapter)
    type_(monkeypatch, "merge_lora.py", "--ckpt", adapter, "--base", public, "-o", merged)
    type_(monkeypatch, "convert_ckpt_lora.py", "--ckpt", last, "--to", "peft", "--adapt-rank", 3, "-o", peft)
    said = capsys.readouterr().out
    assert f"{adapter}: " in said and "no adapters" in said
    assert layers_of(read_checkpoint(adapter)["state_dict"]) and not layers_of(read_checkpoint(merged)["state_dict"])
    assert style_of(read_checkpoint(peft)["state_dict"]) == "peft"


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("merge_lora.py", ["--ckpt", "none.ckpt", "-o", "x.ckpt"]),
        ("convert_ckpt_lora.py", ["--ckpt", "none.ckpt", "-o", "x.ckpt", "--to", "plain"]),
        ("convert_ckpt_lora.py", ["--ckpt", "none.ckpt", "-o", "x.ckpt", "--to", "adapter", "--adapt-rank", "3"]),
        ("convert_ckpt_lora.py", ["--ckpt", "none.ckpt", "-o", "x.ckpt", "--to", "lora"]),
    ],
)
def test_mistakes_are_one_line(verb: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    with pytest.raises(SystemExit) as stop:
        type_(monkeypatch, verb, *words)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
