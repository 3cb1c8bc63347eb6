"""The checkpoints of a run: the newest epoch's, and `last.ckpt`, written once."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint as LightningModelCheckpoint


class ModelCheckpoint(LightningModelCheckpoint):
    """Lightning's `ModelCheckpoint` with hard links in place of second copies and a minimum interval between saves.

    ``last.ckpt`` is a second name (a hard link) of the file that was written at the same step; without hard links it is
    a copy. It always holds the last saved state, even if the metric did not select it.

    Epochs shorter than ``pause_seconds`` or ``pause_steps`` share a checkpoint; the last epoch has its own. These are
    set only for runs without a configured save interval. A private run uses steps, because its checkpoints must not
    depend on the duration of the draws. The class keeps its base's name, because checkpoints store callback states by
    name.
    """

    pause_seconds: float = 0.0
    pause_steps: int = 0
    _saved_at: float | None = None
    _saved_step: int | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        if self._should_save_on_train_epoch_end(trainer):
            self._save_last_if_missed(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if not self._should_save_on_train_epoch_end(trainer):
            self._save_last_if_missed(trainer)

    def _save_last_if_missed(self, trainer: pl.Trainer) -> None:
        """Save ``last.ckpt`` for an epoch that the metric did not select, so that a run can resume from it."""
        monitored = self.monitor is not None and self._every_n_epochs >= 1 and self.save_last
        if monitored and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _should_skip_saving_checkpoint(self, trainer: pl.Trainer) -> bool:
        return bool(super()._should_skip_saving_checkpoint(trainer)) or self._too_soon(trainer)

    def _too_soon(self, trainer: pl.Trainer) -> bool:
        if is_final(trainer):
            return False
        if self._saved_step is not None and trainer.global_step - self._saved_step < self.pause_steps:
            return True
        if not self.pause_seconds or self._saved_at is None:
            return False
        soon = time.monotonic() - self._saved_at < self.pause_seconds
        return bool(trainer.strategy.broadcast(soon))  # all processes must decide alike

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        super()._save_checkpoint(trainer, filepath)
        self._saved_at, self._saved_step = time.monotonic(), trainer.global_step

    def _save_last_checkpoint(self, trainer: pl.Trainer, monitor_candidates: dict[str, Any]) -> None:
        source = self._last_checkpoint_saved if self._last_global_step_saved == trainer.global_step else ""
        target = self.format_checkpoint_name(monitor_candidates, self.CHECKPOINT_NAME_LAST)
        if not self.save_last or not source or self._enable_version_counter or source == target:
            super()._save_last_checkpoint(trainer, monitor_candidates)
            return
        previous, self.last_model_path = self.last_model_path, target
        if trainer.is_global_zero:
            give_second_name(Path(source), Path(target))
        trainer.strategy.barrier("last.ckpt")
        if previous and self._should_remove_checkpoint(trainer, previous, target):
            self._remove_checkpoint(trainer, previous)


def is_final(trainer: pl.Trainer) -> bool:
    """Whether the epoch that ends now is the run's last."""
    if trainer.should_stop or (trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps):
        return True
    return trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= trainer.max_epochs


def give_second_name(source: Path, target: Path) -> None:
    """Make ``target`` a hard link of ``source`` atomically; a copy where the file system has no hard links."""
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.tmp{target.suffix}")
    try:
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copy2(source, temporary)
        os.replace(temporary, target)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
