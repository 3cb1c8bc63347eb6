"""Epoch time and peak GPU memory."""

from __future__ import annotations

import logging
import time

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

logger = logging.getLogger(__name__)


class CUDACallback(Callback):
    """Logs the seconds of every training epoch and, on a GPU, its peak memory in MiB.

    Logs nothing in a private run, because both values depend on the sizes of the Poisson draws.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # a run resumed within an epoch has no epoch start
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)
            torch.cuda.synchronize(pl_module.device)
        self.started = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if getattr(pl_module, "private", None) is not None:
            return
        memory = ""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
            memory = f", peak GPU memory {torch.cuda.max_memory_allocated(pl_module.device) / 2**20:.0f} MiB"
        logger.info("epoch %d: %.2f s%s", trainer.current_epoch, time.perf_counter() - self.started, memory)
