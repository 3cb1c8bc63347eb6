"""`DDPM`: a diffusion model with Lightning's hooks, in pixel or latent space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from ldm.config import instantiate_from_config
from ldm.models.diffusion.conditioning import DiffusionWrapper
from ldm.models.diffusion.denoiser import Denoiser, count_records
from ldm.modules.fused import fused_option

__all__ = ["DDPM", "DiffusionWrapper"]


class DDPM(Denoiser, pl.LightningModule):
    """A `Denoiser` that Lightning trains; parameters, state dict and buffers are those of `Denoiser`."""

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor | None:
        loss, report = self.shared_step(batch)
        size = count_records(batch)
        self.log_dict(report, prog_bar=True, on_step=True, on_epoch=True, batch_size=size)
        self.log("global_step", float(self.global_step), prog_bar=False, on_step=True, batch_size=size)
        return loss

    @torch.no_grad()
    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        size = count_records(batch)
        _, report = self.shared_step(batch)
        self.log_dict(report, on_step=False, on_epoch=True, batch_size=size)
        if self.use_ema:
            with self.ema_scope():
                _, averaged = self.shared_step(batch)
            self.log_dict({f"{k}_ema": v for k, v in averaged.items()}, on_step=False, on_epoch=True, batch_size=size)

    @torch.no_grad()
    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        with self.ema_scope():
            _, report = self.shared_step(batch)
        named = {key.replace("val/", "test/"): value for key, value in report.items()}
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=count_records(batch))

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        # Update the EMA right after the optimizer step; callbacks that run at the end of the batch would otherwise save
        # and sample a stale average.
        super().optimizer_step(*args, **kwargs)
        self.average_weights()

    def configure_optimizers(self) -> Any:
        parameters = list(self.trainable().values())
        optimizer = self.build_optimizer(parameters)
        if self.scheduler_config is None:
            return optimizer
        scheduler = instantiate_from_config(self.scheduler_config)
        return [optimizer], [
            {"scheduler": LambdaLR(optimizer, lr_lambda=scheduler.schedule), "interval": "step", "frequency": 1}
        ]

    def build_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer (AdamW) of the given parameters."""
        return self.adamw(parameters, self.optimizer_options())

    def adamw(self, parameters: list[nn.Parameter], options: Mapping[str, Any]) -> torch.optim.Optimizer:
        """AdamW with these options, fused unless they say otherwise."""
        return torch.optim.AdamW(
            parameters, lr=self.learning_rate, **{**fused_option(parameters, self._trainer), **options}
        )

    def optimizer_options(self) -> dict[str, Any]:
        """Keyword arguments of the optimizer besides parameters and learning rate."""
        return {}
