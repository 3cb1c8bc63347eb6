"""`LatentDiffusion`: the diffusion model in the latent space of a frozen autoencoder, as Lightning trains it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoint import UNPROTECTED_DATA
from ldm.config import instantiate_from_config
from ldm.errors import UserError, nearest
from ldm.models.diffusion.conditioning import DiffusionWrapper
from ldm.models.diffusion.ddpm_base import DDPM
from ldm.models.diffusion.latent_denoiser import LatentDenoiser
from ldm.models.diffusion.private_training import PrivateTraining
from ldm.modules.adam_bc import AdamBC

__all__ = ["DDPM", "DiffusionWrapper", "LatentDiffusion"]


class LatentDiffusion(LatentDenoiser, DDPM):
    """A `LatentDenoiser` that Lightning trains, with or without privacy; its parameters are those of `LatentDenoiser`.

    Sampling needs no trainer, and `ldm.inference.load_model` builds a `LatentDenoiser` in its place.
    """

    private: PrivateTraining | None = None

    def _build(self, config: Any) -> Any:
        return instantiate_from_config(config)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.scale_is_known = True

    def setup(self, stage: str) -> None:
        # Freeze before the optimizer exists, because distributed processes then decide which gradients to exchange.
        if stage == "fit":
            self.select_trainable()

    def configure_optimizers(self) -> Any:
        self.select_trainable()
        return super().configure_optimizers()

    def build_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """AdamW, or with ``optimizer_config.name: adam_bc`` `AdamBC`, which corrects for the DP noise."""
        options = dict(self.optimizer_options())
        name = options.pop("name", "adamw")
        if name == "adamw":
            return self.adamw(parameters, options)
        if name != "adam_bc":
            raise UserError(f"optimizer_config.name: {name!r} is unknown{nearest(str(name), ('adamw', 'adam_bc'))}")
        variance = 0.0 if self.private is None else self.private.plan.step_noise_variance
        return AdamBC(parameters, lr=self.learning_rate, noise_variance=variance, **options)

    def optimizer_options(self) -> dict[str, Any]:
        return self.optimizer_config

    def on_train_start(self) -> None:
        if self.dp_config.enabled and self.private is None:
            raise UserError("dp_config.enabled is set but no privacy plan was attached; train through main.py")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if not self.scale_is_known:
            self._measure_scale(batch)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor | None:
        if self.private is None:
            return super().training_step(batch, batch_idx)
        self.private.step(self, batch)
        return None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.start_privacy:  # the privacy budget that the initial weights have spent remains spent
            checkpoint["start_privacy"] = self.start_privacy
        if seen := self.seen_unprotected():
            checkpoint[UNPROTECTED_DATA] = list(seen)
        if self.private is not None:
            self.private.release(checkpoint.get("state_dict"))
            checkpoint["privacy"] = self.private.state_dict()
