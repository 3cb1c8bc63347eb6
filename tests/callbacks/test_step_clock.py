"""A private run writes no time that follows the sizes of its draws."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks.cuda_callback import CUDACallback
from callbacks.step_clock import StepClock
from ldm.errors import UserError
from ldm.models.diffusion.private_training import PrivateTraining
from ldm.training import train
from ldm.training.trainer_parts import refuse_revealing, uncovered_loggers
from tests import tiny


def test_times_of_a_run_are_one_second_a_step_however_long_the_steps_take(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    undelayed = PrivateTraining.step

    def step(self: PrivateTraining, model: Any, batch: Any) -> None:
        time.sleep(0.2 if self.ledger.steps % 2 else 0.0)
        undelayed(self, model, batch)

    monkeypatch.setattr(PrivateTraining, "step", step)
    model = tiny.ldm("attention", train_attention_only=True, dp_config=tiny.dp(dataset_size=24))
    config = tiny.run_config(model, tiny.write_digits(tmp_path / "digits"), max_steps=6, enable_progress_bar=True)
    config["lightning"]["modelcheckpoint"] = {
        "params": {"every_n_train_steps": 1, "save_top_k": -1, "filename": "{step}"}
    }
    config["lightning"]["callbacks"]["image_logger"] = {"params": {"batch_frequency": 2, "steps": 2, "max_images": 1}}
    with caplog.at_level("INFO"):
        run = train(tiny.options(tmp_path / "a", config)).path
    events = EventAccumulator(str(run / "tensorboard" / "version_0"))
    events.Reload()
    entries = [entry for tag in events.Tags()["scalars"] for entry in events.Scalars(tag) if tag != "hp_metric"]
    starts = {entry.wall_time - entry.step for entry in entries}
    assert len(entries) >= 6 and len(starts) == 1, "log, step: start + one second a step"
    files = {int(path.stem.rpartition("=")[2]): path for path in (run / "checkpoints").glob("step=*.ckpt")}
    (start,) = {path.stat().st_mtime - step for step, path in files.items()}
    assert sorted(files) == [1, 2, 3, 4, 5, 6] and start == starts.pop()
    images = {path.stat().st_mtime - int(path.name.partition("gs-")[2][:6]) for path in run.rglob("*.png")}
    assert images == {start}
    shown = capsys.readouterr()
    assert "it/s" not in shown.out + shown.err and "s/it" not in shown.out + shown.err
    assert "step 6 of 6" in shown.out + shown.err, "steps are counted"
    assert (run / "progress.log").stat().st_mtime == start + 6
    shown_images = events.Images("samples")
    assert {image.wall_time - image.step for image in shown_images} == {start} and len(shown_images) == 3
    (text,) = events.Tensors("config/text_summary")
    assert text.wall_time == start
    assert not [line for line in caplog.messages if line.startswith("epoch ")]


def test_epochs_of_a_private_run_are_not_timed(caplog: pytest.LogCaptureFixture) -> None:
    callback, module = CUDACallback(), SimpleNamespace(device=SimpleNamespace(type="cpu"), private=object())
    with caplog.at_level("INFO"):
        callback.on_train_start(SimpleNamespace(current_epoch=0), module)
        callback.on_train_epoch_end(SimpleNamespace(current_epoch=0), module)
    assert caplog.text == ""


def test_callbacks_that_reveal_the_draws_are_refused() -> None:
    from pytorch_lightning import callbacks as theirs

    for callback in (theirs.DeviceStatsMonitor(), theirs.Timer("00:01:00:00"), theirs.TQDMProgressBar()):
        with pytest.raises(UserError, match="lightning.callbacks.x: .* reveals how many records were drawn; remove it"):
            refuse_revealing("x", callback)
    import datetime

    with pytest.raises(UserError, match="train_time_interval"):
        refuse_revealing("x", theirs.ModelCheckpoint(train_time_interval=datetime.timedelta(1)))
    refuse_revealing("x", theirs.LearningRateMonitor())


def test_another_logger_is_not_covered(tmp_path: Path) -> None:
    from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

    assert uncovered_loggers([CSVLogger(tmp_path)]) == ()
    (line,) = uncovered_loggers([TensorBoardLogger(tmp_path), CSVLogger(tmp_path)])
    assert line.startswith("the times that TensorBoardLogger records with the steps")


def test_the_clock() -> None:
    clock = StepClock(100.7)
    assert [clock.at(step) for step in (0, 1, 5)] == [100.0, 101.0, 105.0]
