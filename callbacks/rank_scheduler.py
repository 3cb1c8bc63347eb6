"""`RankSchedulerCallback` of the reproduction study, whose schedule is now an option of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from ldm.errors import UserError
from ldm.modules.lora import RankSchedule, adapters

__all__ = ["RankSchedulerCallback"]


class RankSchedulerCallback(Callback):
    """Checks that the adapters of a model have the ranks of a schedule; the model is built with them.

    ``scheduler_config``: name, initial_rank, final_rank and schedule_type. In the study the callback changed the ranks
    of a built model; here ``model_lora_rank_schedule`` sets them at construction. Raises UserError at the start of
    training for a model with other ranks. The other parameters have no effect.
    """

    def __init__(
        self,
        scheduler_config: Mapping[str, Any],
        adapter_name: str = "default",
        target_layers: Sequence[str] | None = None,
        log_interval: int = 100,
    ):
        self.wanted = dict(scheduler_config)
        self.schedule = RankSchedule.read(self.wanted)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        ranks = [layer.rank for _, layer in adapters(pl_module)]
        if ranks != self.schedule.ranks(len(ranks)):
            given = ", ".join(f"{key}: {value}" for key, value in self.wanted.items())
            raise UserError(
                "RankSchedulerCallback: the ranks are built into the model here; set model.params."
                f"model_lora_rank_schedule: {{{given}}}"
            )
