"""Checkpoints outside the schedule: on a signal, on Ctrl-C, and when training fails."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from ldm.errors import UserError

logger = logging.getLogger(__name__)


class RescueCallback(Callback):
    """Saves ``on_signal.ckpt`` on SIGUSR1, ``last.ckpt`` on Ctrl-C and ``on_exception.ckpt`` on any other failure.

    A signal is acted on between two steps: in the middle of one, the weights and the ledger would not fit together.
    """

    def __init__(self, checkpoints: str):
        self.checkpoints = Path(checkpoints)
        self.asked = False
        self._before: Any = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if hasattr(signal, "SIGUSR1") and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGUSR1, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.asked:
            self.asked = False
            self._save(trainer, "on_signal.ckpt")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, UserError) or trainer.global_step == 0:
            return
        self._save(trainer, "last.ckpt" if isinstance(exception, KeyboardInterrupt) else "on_exception.ckpt")

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        if trainer.world_size > 1:
            self._save_alone(trainer, name)
        else:
            trainer.save_checkpoint(str(self.checkpoints / name))
        logger.info("saved %s", self.checkpoints / name)

    def _save_alone(self, trainer: pl.Trainer, name: str) -> None:
        # the Trainer would have the processes wait for one another, and the others may be elsewhere, or gone
        if trainer.is_global_zero:
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.save_checkpoint(checkpoint, str(self.checkpoints / name))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._before is not None:
            signal.signal(signal.SIGUSR1, self._before)
            self._before = None
