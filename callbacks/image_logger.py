"""Writes generated images during training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from callbacks.step_clock import StepClock, show_image
from ldm.errors import UserError
from ldm.samples import grid, save_grid

logger = logging.getLogger(__name__)


class ImageLogger(Callback):
    """Saves PNG grids every ``batch_frequency`` steps to ``images/train/{key}_gs-..._e-..._b-....png``.

    TensorBoard shows them too. In a private run the images are samples of the model, and the ledger charges the steps
    before they are written.
    ``steps`` is the number of sampling steps of latent models.
    """

    def __init__(
        self,
        batch_frequency: int = 750,
        max_images: int = 4,
        clamp: bool = True,
        disabled: bool = False,
        steps: int = 50,
        log_first_step: bool = False,
    ):
        for name, value in (("batch_frequency", batch_frequency), ("max_images", max_images), ("steps", steps)):
            if value < 1:
                raise UserError(f"image_logger {name}: {value} is below 1; set disabled: true for no images")
        self.batch_frequency = batch_frequency
        self.max_images = max_images
        self.clamp = clamp
        self.disabled = disabled
        self.steps = steps
        self.log_first_step = log_first_step
        self._last = -1
        #: Clock of the files' timestamps in a private run.
        self.clock: StepClock | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        due = step % self.batch_frequency == 0 if step else False
        if self.disabled or not trainer.is_global_zero or step == self._last:
            return
        if due or (self.log_first_step and step == 1):
            self._last = step
            self.write_images(trainer, pl_module, batch, batch_idx)

    @torch.no_grad()
    def write_images(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Draw the images in evaluation mode and write them."""
        if not hasattr(pl_module, "log_images"):
            return
        training = getattr(pl_module, "private", None)
        was_training = pl_module.training
        pl_module.eval()
        # a separate generator state, because sampling must not change the random numbers of training
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            options: dict[str, Any] = {}
            if hasattr(pl_module, "num_timesteps"):  # a diffusion model, not an autoencoder with an EMA
                steps = min(self.steps, pl_module.num_timesteps)
                options = {"steps": steps, "private": training is not None}
            logged = pl_module.log_images(batch, count=self.max_images, **options)
        pl_module.train(was_training)
        if training is not None:
            training.release()
        folder = Path(trainer.default_root_dir) / "images" / "train"
        folder.mkdir(parents=True, exist_ok=True)
        for key, images in logged.items():
            images = images[: self.max_images].float().cpu()
            name = f"{key}_gs-{trainer.global_step:06}_e-{trainer.current_epoch:06}_b-{batch_idx:06}.png"
            images = images.clamp(-1, 1) if self.clamp else images
            save_grid(images, folder / name, columns=4)
            show_image(getattr(trainer, "loggers", ()), key, grid(images, 4), trainer.global_step, self.clock)
            if self.clock is not None:
                self.clock.set_file_time(folder / name, trainer.global_step)
