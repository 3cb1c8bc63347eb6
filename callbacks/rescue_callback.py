"""Checkpoints on signals, on Ctrl-C and on failures of training."""

from __future__ import annotations

import logging
import signal
import threading
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from callbacks.slurm_requeue import requeue, requeues_itself
from ldm.errors import Stopped, UserError

logger = logging.getLogger(__name__)

ENDING = ("SIGTERM", "SIGINT")
SAVING = ("SIGUSR1",)


class RescueCallback(Callback):
    """Saves ``on_signal.ckpt`` on SIGUSR1 and goes on; saves ``last.ckpt`` on SIGTERM and on Ctrl-C and ends the run.

    A signal is handled between two steps, because within a step weights and ledger may disagree. A second Ctrl-C ends
    the run at once. The run ends with `ldm.errors.Stopped`, hence with exit code 143 or 130. In a SLURM job that may be
    requeued, SIGUSR1 (``sbatch --signal=USR1@90``) saves ``last.ckpt``, requeues the job and ends the run. Any other
    failure saves ``on_exception.ckpt``; a mistake of the user (UserError) saves nothing.
    """

    def __init__(self, checkpoints: str):
        self.checkpoints = Path(checkpoints)
        self.asked: signal.Signals | None = None
        self._saved: Path | None = None
        self._waiting = False  # whether a signal must wait for the current step
        self._before: dict[signal.Signals, Any] = {}

    # ------------------------------------------------------------------ signals

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # noted here, because Lightning replaces the handlers between this hook and the start of training
        if threading.current_thread() is threading.main_thread() and not self._before:
            self._before = {number: signal.getsignal(number) for number in self._numbers()}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # not earlier, because Lightning installs its own handlers just before
        for number in self._before:
            signal.signal(number, self._ask)

    @staticmethod
    def _numbers() -> list[signal.Signals]:
        """The signals that are handled; not every system has all of them."""
        return [getattr(signal, name) for name in (*ENDING, *SAVING) if hasattr(signal, name)]

    def _ask(self, number: int, frame: Any) -> None:
        again = self.asked == number
        self.asked = signal.Signals(number)
        if self.asked.name == "SIGINT" and (again or not self._waiting):
            raise self._stopped()
        if self._waiting and self.asked.name in ENDING:
            logger.info("%s: the run ends after this step", self.asked.name)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, index: int) -> None:
        self._waiting = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._waiting = False
        self._act(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        if not trainer.sanity_checking:
            self._act(trainer)

    def _act(self, trainer: pl.Trainer) -> None:
        """Handle the last signal; call this between two steps."""
        asked, again = self.asked, requeues_itself()
        if asked is None:
            return
        if asked.name in SAVING and not again:
            self.asked = None
            self._save(trainer, "on_signal.ckpt")
            return
        self._save(trainer, "last.ckpt")
        if asked.name in SAVING and trainer.is_global_zero:
            requeue()
        raise self._stopped()

    def _stopped(self) -> Stopped:
        name = self.asked.name if self.asked is not None else "SIGINT"
        return Stopped(int(self.asked or signal.SIGINT), f"stopped by {'Ctrl-C' if name == 'SIGINT' else name}")

    # ------------------------------------------------------------------ exceptions

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        if isinstance(exception, UserError) or trainer.global_step == 0:
            return
        if isinstance(exception, (Stopped, KeyboardInterrupt)):
            if self._saved is None:
                self._save(trainer, "last.ckpt")
            self._end_other_processes(trainer)
        else:
            self._save(trainer, "on_exception.ckpt")

    def _end_other_processes(self, trainer: pl.Trainer) -> None:
        kill = getattr(trainer.strategy.launcher, "kill", None)
        if kill is not None and trainer.world_size > 1:
            kill(signal.SIGTERM)

    def _save(self, trainer: pl.Trainer, name: str) -> None:
        path = self.checkpoints / name
        if trainer.world_size > 1:
            self._save_alone(trainer, path)
        else:
            trainer.save_checkpoint(str(path))
        self._saved = path
        logger.info("saved %s", path)

    def _save_alone(self, trainer: pl.Trainer, path: Path) -> None:
        # the Trainer would synchronize the processes, and others may be elsewhere or dead
        if trainer.is_global_zero:
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.save_checkpoint(checkpoint, str(path))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self.restore_handlers()

    def restore_handlers(self) -> None:
        """Restore the handlers from before the run; Lightning's own would ignore SIGTERM in what follows the run."""
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}
