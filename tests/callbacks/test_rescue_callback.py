"""Signals are acted on between two steps, and say how the command ended."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
from pytorch_lightning.demos.boring_classes import BoringModel

from callbacks import rescue_callback
from callbacks.rescue_callback import RescueCallback
from ldm.errors import Stopped, UserError


class Trainer(SimpleNamespace):
    """Notes what is saved."""

    def __init__(self) -> None:
        launcher = SimpleNamespace()
        super().__init__(world_size=1, global_step=3, is_global_zero=True, sanity_checking=False, saved=[])
        self.strategy = SimpleNamespace(launcher=launcher)

    def save_checkpoint(self, path: str) -> None:
        self.saved.append(Path(path).name)


@pytest.fixture
def running(tmp_path: Path) -> Any:
    """A callback in the middle of a step, and its Trainer."""
    callback, trainer = RescueCallback(str(tmp_path)), Trainer()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    callback.setup(trainer, None, "fit")
    callback.on_train_start(trainer, None)
    callback.on_train_batch_start(trainer, None, None, 0)
    yield callback, trainer
    callback.teardown(trainer, None, "fit")
    assert {number: signal.getsignal(number) for number in before} == before


def test_after_a_run_signals_act_as_before_it(tmp_path: Path) -> None:
    """What follows a run in the same process, such as sampling, must end at SIGTERM; Lightning's handler ignores it."""
    seen: list[Any] = []

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            seen.append(signal.getsignal(signal.SIGTERM))

    rescue = RescueCallback(str(tmp_path))
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        limit_val_batches=0,
        enable_model_summary=False,
        callbacks=[rescue, Look()],
        default_root_dir=tmp_path,
        **quiet,
    )
    before = signal.getsignal(signal.SIGTERM)
    trainer.fit(BoringModel())
    assert seen == [rescue._ask]
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_waits_for_the_step(running: Any, number: signal.Signals, code: int) -> None:
    callback, trainer = running
    signal.raise_signal(number)
    assert trainer.saved == []
    with pytest.raises(Stopped) as stopped:
        callback.on_train_batch_end(trainer, None, None, None, 0)
    assert trainer.saved == ["last.ckpt"] and 128 + stopped.value.signal == code
    callback.on_exception(trainer, None, stopped.value)
    assert trainer.saved == ["last.ckpt"], "once"


def test_a_second_ctrl_c_does_not_wait(running: Any) -> None:
    callback, trainer = running
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(Stopped) as stopped:
        signal.raise_signal(signal.SIGINT)
    callback.on_exception(trainer, None, stopped.value)
    assert trainer.saved == ["last.ckpt"]


def test_ctrl_c_between_steps_acts_at_once_and_sigterm_during_validation(running: Any) -> None:
    callback, trainer = running
    callback.on_train_batch_end(trainer, None, None, None, 0)
    with pytest.raises(Stopped):
        signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Stopped):
        callback.on_validation_batch_end(trainer, None)
    assert trainer.saved == ["last.ckpt"]


def test_sigusr1_saves_and_goes_on_or_requeues_the_job(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    callback, trainer = running
    signal.raise_signal(signal.SIGUSR1)
    callback.on_train_batch_end(trainer, None, None, None, 0)
    callback.on_train_batch_end(trainer, None, None, None, 1)
    assert trainer.saved == ["on_signal.ckpt"]
    asked: list[str] = []
    monkeypatch.setattr(rescue_callback, "requeues_itself", lambda: True)
    monkeypatch.setattr(rescue_callback, "requeue", lambda: asked.append("requeue"))
    signal.raise_signal(signal.SIGUSR1)
    with pytest.raises(Stopped):
        callback.on_train_batch_end(trainer, None, None, None, 2)
    assert trainer.saved == ["on_signal.ckpt", "last.ckpt"] and asked == ["requeue"]


def test_other_ends(running: Any) -> None:
    callback, trainer = running
    callback.on_exception(trainer, None, UserError("a mistake"))
    assert trainer.saved == []
    callback.on_exception(trainer, None, RuntimeError("a fault"))
    callback.on_exception(trainer, None, KeyboardInterrupt())
    assert trainer.saved == ["on_exception.ckpt"], "what is saved already is not saved twice"
