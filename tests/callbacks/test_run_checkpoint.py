"""The checkpoints of a run: written once, and none too often."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from callbacks import run_checkpoint
from callbacks.run_checkpoint import ModelCheckpoint, give_second_name
from callbacks.safe_checkpoint import SafeCheckpointIO
from ldm.checkpoint import read_checkpoint
from ldm.training import train
from ldm.training.trainer_parts import share_checkpoints
from tests import tiny
from tests.tiny_runs import public_config


@pytest.fixture
def saves(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, int]]:
    """Name and step of every file that is written in full."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found: list[tuple[str, int]] = []
    save = SafeCheckpointIO.save_checkpoint

    def noted(self: Any, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        found.append((Path(path).name, checkpoint["global_step"]))
        save(self, checkpoint, path)

    monkeypatch.setattr(SafeCheckpointIO, "save_checkpoint", noted)
    return found


def test_short_epochs_share_a_checkpoint_and_last_is_a_link(tmp_path: Path, saves: list[tuple[str, int]]) -> None:
    run = train(tiny.options(tmp_path / "a", public_config(tmp_path, max_epochs=3))).path
    assert saves == [("epoch=000002.ckpt", 6)], "three epochs within a second, one file"
    names = ("last.ckpt", "epoch=000002.ckpt")
    last, epoch = (run / "checkpoints" / name for name in names)
    assert last.stat().st_ino == epoch.stat().st_ino
    options = tiny.RunOptions(base=[], resume=str(run), train=True, scale_lr=False, trainer={"max_epochs": 4})
    train(options)
    assert saves[1:] == [("epoch=000003.ckpt", 8)] and read_checkpoint(last)["global_step"] == 8
    assert not epoch.exists(), "the newest epoch is kept"


def test_a_run_that_says_how_often_is_obeyed(tmp_path: Path, saves: list[tuple[str, int]]) -> None:
    config = public_config(tmp_path, max_epochs=2)
    config["lightning"]["modelcheckpoint"] = {"params": {"every_n_epochs": 1}}
    train(tiny.options(tmp_path / "a", config))
    assert saves == [("epoch=000000.ckpt", 2), ("epoch=000001.ckpt", 4)]


def test_private_runs_count_steps_and_never_look_at_the_clock(tmp_path: Path) -> None:
    callback = ModelCheckpoint(tmp_path)
    share_checkpoints(callback, {"save_last": True}, SimpleNamespace(steps=1001))
    assert (callback.pause_steps, callback.pause_seconds) == (11, 0.0)
    trainer = SimpleNamespace(should_stop=False, max_steps=-1, max_epochs=-1, global_step=10, current_epoch=3)
    callback._saved_step = 0
    assert callback._too_soon(trainer)
    trainer.global_step = 11
    assert not callback._too_soon(trainer)
    trainer.global_step, trainer.should_stop = 1, True
    assert not callback._too_soon(trainer), "the last epoch is saved in any case"


def test_public_runs_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    callback = ModelCheckpoint(tmp_path)
    share_checkpoints(callback, {}, None)
    clock = iter([100.0, 279.0, 281.0])
    monkeypatch.setattr(run_checkpoint.time, "monotonic", lambda: next(clock))
    callback._saved_at = run_checkpoint.time.monotonic()
    strategy = SimpleNamespace(broadcast=lambda value: value)
    trainer = SimpleNamespace(
        should_stop=False, max_steps=-1, max_epochs=9, global_step=1, current_epoch=0, strategy=strategy
    )
    assert [callback._too_soon(trainer) for _ in range(2)] == [True, False]
    for params in ({"monitor": "val/loss"}, {"save_top_k": -1}, {"every_n_train_steps": 5}):
        other = ModelCheckpoint(tmp_path)
        share_checkpoints(other, params, None)
        assert (other.pause_seconds, other.pause_steps) == (0.0, 0)


def test_a_second_name_or_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "a.ckpt", tmp_path / "last.ckpt"
    source.write_text("new")
    target.write_text("old")
    give_second_name(source, target)
    assert target.samefile(source)
    monkeypatch.setattr(run_checkpoint.os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    give_second_name(source, tmp_path / "copy.ckpt")
    assert (tmp_path / "copy.ckpt").read_text() == "new" and not (tmp_path / "copy.ckpt").samefile(source)
    assert {path.name for path in tmp_path.iterdir()} == {"a.ckpt", "last.ckpt", "copy.ckpt"}
