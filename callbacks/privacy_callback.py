"""Shows the epsilon spent, and stops a private run when its plan is used up."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

if TYPE_CHECKING:
    from ldm.models.diffusion.private_training import PrivateTraining
    from ldm.privacy.meter import EpsilonMeter

logger = logging.getLogger(__name__)


class PrivacyCallback(Callback):
    """Follows a `PrivateTraining`: epsilon in the metrics, a stop at the end of the plan."""

    def __init__(self, training: PrivateTraining, meter: EpsilonMeter):
        self.training = training
        self.meter = meter

    def on_fit_start(self, trainer: pl.Trainer, pl_module: Any) -> None:  # a `PrivateModel`, too
        if not self.training.spent:
            self.training.verify(pl_module)
            self.training.choose_microbatch(pl_module)
        self.training.begin()  # before the data loaders exist, because they draw the seeds of their workers

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.training.spent:
            logger.info("the privacy budget of this run is spent; nothing is left to train")
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # step count and epsilon depend on the plan only, so showing them is safe
        pl_module.log("privacy/epsilon", self.meter(self.training.taken), batch_size=1)
        if self.training.spent:
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.training.release()
        logger.info("privacy: %s", self.training.describe())
