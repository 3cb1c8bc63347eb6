"""`DPCallback` under the address that the original code gives it."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

__all__ = ["DPCallback"]


class DPCallback(Callback):
    """Prints what a private run has spent at the end of every epoch. Every private run shows it anyway, each step."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        training = getattr(pl_module, "private", None)
        if training is not None and trainer.is_global_zero:
            print(f"privacy: {training.describe()}")
