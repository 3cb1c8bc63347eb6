"""The run directory that a run starts with, and what its checkpoints say about the model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from callbacks.setup_callback import SetupCallback

PROJECT = {"model": {"target": "a.B", "params": {"x": "${data.params.y}"}}, "data": {"params": {"y": 3}}}
LIGHTNING = {"trainer": {"accelerator": "cpu"}}


def callback(folder: Path) -> SetupCallback:
    return SetupCallback(str(folder / "run"), "2026-01-01T00-00-00", OmegaConf.create(PROJECT), LIGHTNING)


def start(setup: SetupCallback, first: bool = True) -> None:
    setup.on_fit_start(SimpleNamespace(is_global_zero=first), None)


def test_folders_and_configurations(tmp_path: Path) -> None:
    setup = callback(tmp_path)
    assert list(tmp_path.iterdir()) == [], "nothing before training starts"
    start(setup)
    run = tmp_path / "run"
    assert sorted(str(path.relative_to(run)) for path in run.rglob("*")) == [
        "checkpoints",
        "configs",
        "configs/2026-01-01T00-00-00-lightning.yaml",
        "configs/2026-01-01T00-00-00-project.yaml",
    ]
    merged = OmegaConf.merge(*(OmegaConf.load(path) for path in sorted((run / "configs").iterdir())))
    assert OmegaConf.to_container(merged, resolve=True) == {
        "model": {"target": "a.B", "params": {"x": 3}},
        "data": {"params": {"y": 3}},
        "lightning": LIGHTNING,
    }


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    start(callback(tmp_path), first=False)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_write_leaves_no_half_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, text: str, encoding: str) -> None:
        path.write_bytes(text[:3].encode())
        raise OSError("disk full")

    setup = callback(tmp_path)
    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        start(setup)
    assert list((tmp_path / "run" / "configs").iterdir()) == []


def test_checkpoints_carry_the_model_s_configuration_as_plain_values(tmp_path: Path) -> None:
    checkpoint: dict[str, Any] = {}
    callback(tmp_path).on_save_checkpoint(None, None, checkpoint)
    assert checkpoint == {"model_config": {"target": "a.B", "params": {"x": 3}}}
    assert type(checkpoint["model_config"]["params"]) is dict
