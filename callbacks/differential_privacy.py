"""`DPCallback` under its import path in the original code."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

__all__ = ["DPCallback"]


class DPCallback(Callback):
    """Prints a private run's epsilon at the end of every epoch; every private run also shows it after each step."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        training = getattr(pl_module, "private", None)
        if training is not None and trainer.is_global_zero:
            print(f"privacy: {training.describe()}")
