"""`dp-ldm train`: the words that it takes, and what it says at the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ldm.commands import train as command
from ldm.commands.table import dispatch
from ldm.training import RunOptions
from ldm.training.run_directory import RunDirectory


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[RunOptions]:
    """Options of the trainings that were asked for; none is done."""
    found: list[RunOptions] = []

    def train(options: RunOptions) -> RunDirectory:
        found.append(options)
        return RunDirectory(tmp_path, "stamp")

    monkeypatch.setattr(command, "train", train)
    return found


def test_files_settings_and_flags_in_any_order(asked: list[RunOptions], capsys: Any, tmp_path: Path) -> None:
    dispatch(["train", "a.yaml", "model.params.x=1", "--max_epochs", "3", "b.yaml", "y=2", "--accelerator", "cpu"])
    (options,) = asked
    assert options.train and options.base == ["a.yaml", "b.yaml"]
    assert options.dotlist == ["model.params.x=1", "y=2"]
    assert options.trainer == {"max_epochs": 3, "accelerator": "cpu"}
    said = capsys.readouterr().out
    assert f"written to {tmp_path}" in said and f"next: dp-ldm sample {tmp_path}" in said and "release" not in said


def test_a_private_run_leads_to_a_release_and_a_dry_run_to_training(
    asked: list[RunOptions], capsys: Any, tmp_path: Path
) -> None:
    (tmp_path / "privacy.json").touch()
    dispatch(["train", "--resume", "logs/x"])
    assert asked[0].resume == "logs/x" and asked[0].train
    assert f"dp-ldm release {tmp_path} NEW_FOLDER" in capsys.readouterr().out
    dispatch(["train", "a.yaml", "--dry-run"])
    assert "nothing was trained or written" in capsys.readouterr().out


def test_an_unknown_flag(asked: list[RunOptions], capsys: Any) -> None:
    with pytest.raises(SystemExit):
        dispatch(["train", "a.yaml", "--max_epoch", "3"])
    assert "did you mean '--max_epochs'" in capsys.readouterr().err and not asked


def test_a_run_without_privacy_does_not_lead_to_a_release(asked: list[RunOptions], capsys: Any, tmp_path: Path) -> None:
    card = {"format": "latent diffusion privacy card", "version": 1, "private": False, "plan": None, "trained_on": []}
    RunDirectory(tmp_path, "stamp").privacy_card.write_text(json.dumps(card))
    dispatch(["train", "a.yaml"])
    said = capsys.readouterr().out
    assert f"next: dp-ldm sample {tmp_path}" in said and "audit" not in said and "release" not in said
