"""Base class of the first stages as Lightning trains them: with one or two optimizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ldm.checkpoint import UNPROTECTED_DATA
from ldm.config import instantiate_from_config
from ldm.errors import UserError
from ldm.models.first_stage_networks import FirstStageNetworks
from ldm.modules.fused import fused_option

GENERATOR, DISCRIMINATOR = 0, 1


class FirstStage(FirstStageNetworks, pl.LightningModule):
    """An encoder, a decoder and the loss that trains them; images (B,C,H,W) in [-1,1].

    `lossconfig` names the training loss; `torch.nn.Identity` makes a model that only encodes and decodes. A loss whose
    `has_discriminator` is true gets two optimizers and manual optimisation: every batch takes one step of the
    autoencoder and, once the discriminator has started, one of the discriminator on the same reconstructions;
    `global_step` counts the autoencoder's steps. Lightning cannot accumulate gradients in that mode, so
    `accumulate_grad_batches` is a parameter here.

    The driver sets `learning_rate` before fitting; the autoencoder's is `lr_g_factor` times that. `scheduler_config` is
    an `ldm.lr_scheduler` target, applied every step. A subclass names its encoding's parts in `trained_parts`, makes
    them, and defines `outputs` and `loss_of`. Raises UserError for a bad ddconfig.
    """

    def _make_loss(self, config: Mapping[str, Any]) -> None:
        self.loss = instantiate_from_config(config)
        self.automatic_optimization = not self.has_discriminator

    @property
    def has_discriminator(self) -> bool:
        """Whether the loss trains a second network."""
        return bool(getattr(self.loss, "has_discriminator", False))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.unprotected_data:
            checkpoint[UNPROTECTED_DATA] = list(self.unprotected_data)

    # --- training -----------------------------------------------------------------------------------------------------

    def outputs(self, inputs: Tensor) -> tuple[Any, ...]:
        """The reconstructions of a batch of images, and further tensors that the loss needs."""
        raise NotImplementedError

    def loss_of(
        self, inputs: Tensor, outputs: tuple[Any, ...], optimizer_idx: int, split: str
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one of the two networks, and metrics to log as "split/name"."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Called after every step of the autoencoder."""

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor | None:
        inputs = self.get_input(batch, self.image_key)
        if self.has_discriminator:
            self._adversarial_step(inputs, batch_idx)
            return None
        loss, log = self.loss_of(inputs, self.outputs(inputs), GENERATOR, "train")
        self.log("aeloss", loss.detach(), prog_bar=True, logger=False, batch_size=len(inputs))
        self.log_dict(log, batch_size=len(inputs))
        return loss

    def _adversarial_step(self, inputs: Tensor, batch_idx: int) -> None:
        """One batch for both networks; the optimizers step at the end of every accumulation window."""
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)  # configure_optimizers gives two with a discriminator
        generator, discriminator = optimizers
        window = self.accumulate_grad_batches
        last = (batch_idx + 1) % window == 0 or self.trainer.is_last_batch
        use_discriminator = self.loss.factor_at(self.global_step) > 0

        self.toggle_optimizer(generator)
        outputs = self.outputs(inputs)
        loss, log = self.loss_of(inputs, outputs, GENERATOR, "train")
        self.manual_backward(loss / window)
        self.untoggle_optimizer(generator)
        if use_discriminator:
            disc_loss, disc_log = self.loss_of(inputs, outputs, DISCRIMINATOR, "train")
            self.manual_backward(disc_loss / window)
            log |= disc_log
            self.log("discloss", disc_loss.detach(), prog_bar=True, logger=False, batch_size=len(inputs))
        self.log("aeloss", loss.detach(), prog_bar=True, logger=False, batch_size=len(inputs))
        self.log_dict(log, batch_size=len(inputs))
        if last:
            self._step_both(generator, discriminator, use_discriminator)

    def _step_both(self, generator: Any, discriminator: Any, use_discriminator: bool) -> None:
        if use_discriminator:
            # Step through the strategy, not the wrapper, so that `global_step` (used by disc_start and max_steps)
            # counts the autoencoder's steps only.
            self.trainer.strategy.optimizer_step(discriminator.optimizer, closure=_no_closure)
            discriminator.zero_grad()
        else:
            # Without gradients this changes no parameter; it tells the scheduler that steps are taken.
            discriminator.optimizer.step()
        generator.step()
        generator.zero_grad()
        for scheduler in self._scheduler_list():
            scheduler.step()
        self.after_step()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        # Lightning calls this under automatic optimization only
        super().optimizer_step(*args, **kwargs)
        self.after_step()

    def _scheduler_list(self) -> list[Any]:
        schedulers = self.lr_schedulers()
        if schedulers is None:
            return []
        return list(schedulers) if isinstance(schedulers, list) else [schedulers]

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "val")

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        self._evaluate(batch, "test")

    def _evaluate(self, batch: Mapping[str, Tensor], split: str) -> None:
        inputs = self.get_input(batch, self.image_key)
        self.log_dict(self._scores(inputs, split), batch_size=len(inputs), sync_dist=True)

    def _scores(self, inputs: Tensor, split: str) -> dict[str, Tensor]:
        outputs = self.outputs(inputs)
        _, log = self.loss_of(inputs, outputs, GENERATOR, split)
        if self.has_discriminator:
            log |= self.loss_of(inputs, outputs, DISCRIMINATOR, split)[1]
        return log

    def _optimised(self) -> list[nn.Parameter]:
        return [parameter for part in self.trained_parts for parameter in getattr(self, part).parameters()]

    def configure_optimizers(self) -> Any:
        """Adam for the autoencoder and for a discriminator. Raises UserError when training cannot start."""
        if isinstance(self.loss, nn.Identity):
            raise UserError(
                "lossconfig.target: torch.nn.Identity is for inference; name a loss of ldm.modules.losses to train"
            )
        if self.learning_rate is None:
            raise UserError("the autoencoder has no learning rate; set model.base_learning_rate in the configuration")
        if hasattr(self.loss, "check_ready"):
            self.loss.check_ready()
        rate = self.learning_rate
        groups = [(self._optimised(), self.lr_g_factor * rate)]
        if self.has_discriminator:
            groups.append((list(self.loss.discriminator.parameters()), rate))
        optimizers = [
            torch.optim.Adam(parameters, lr=lr, betas=self.betas, **fused_option(parameters, self._trainer))
            for parameters, lr in groups
        ]
        if self.scheduler_config is None:
            return optimizers
        schedule = instantiate_from_config(self.scheduler_config).schedule
        lambdas = [torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda=schedule) for optimizer in optimizers]
        return optimizers, [{"scheduler": scheduler, "interval": "step", "frequency": 1} for scheduler in lambdas]


def _no_closure() -> None:
    """An empty closure; the gradients have already been computed."""
