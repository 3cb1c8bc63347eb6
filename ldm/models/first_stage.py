"""Base class of the first stages: loading, training with one or two optimizers, colours for segmentation maps."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checkpoint import UNPROTECTED_DATA, inherited_privacy, load_weights, read_checkpoint, unprotected_data
from ldm.config import instantiate_from_config
from ldm.errors import UserError, nearest
from ldm.modules.diffusionmodules.model import Decoder, Encoder
from ldm.modules.fused import fused_option

logger = logging.getLogger(__name__)

GENERATOR, DISCRIMINATOR = 0, 1

#: Parts that only the checkpoint or only the model may have: the training loss and the running average.
OPTIONAL = ("loss.", "model_ema.", "model_ema.loss")


def check_ddconfig(ddconfig: Mapping[str, Any]) -> dict[str, Any]:
    """`ddconfig` as a plain dict. Raises UserError for an unknown or a missing key."""
    parameters = inspect.signature(Encoder.__init__).parameters
    known = [name for name in parameters if name != "self"]
    for key in ddconfig:
        if key not in known:
            raise UserError(f"ddconfig: unknown key {key!r}{nearest(str(key), known)}")
    missing = [name for name in known if parameters[name].default is inspect.Parameter.empty and name not in ddconfig]
    if missing:
        raise UserError(f"ddconfig: missing {', '.join(missing)}; add it to the autoencoder's ddconfig")
    return dict(ddconfig)


class FirstStage(pl.LightningModule):
    """An encoder, a decoder and the loss that trains them; images (B,C,H,W) in [-1,1].

    `lossconfig` names the training loss; `torch.nn.Identity` makes a model that only encodes and decodes. A loss whose
    `has_discriminator` is true gets two optimizers and manual optimisation: every batch takes one step of the
    autoencoder and, once the discriminator has started, one of the discriminator on the same reconstructions;
    `global_step` counts the autoencoder's steps. Lightning cannot accumulate gradients in that mode, so
    `accumulate_grad_batches` is a parameter here.

    The driver sets `learning_rate` before fitting; the autoencoder's is `lr_g_factor` times that. `scheduler_config` is
    an `ldm.lr_scheduler` target, applied every step. A subclass names its encoding's parts in `trained_parts`, makes
    them, and defines `outputs` and `loss_of`. Raises UserError for a bad ddconfig.

    Args:
        ddconfig: the encoder's and decoder's options: ch, ch_mult, num_res_blocks, attn_resolutions, resolution,
            z_channels, ...
        lossconfig: section of the training loss; torch.nn.Identity for a model without further training.
        embed_dim: channels of a latent.
        double_z: whether the encoder gives a mean and a log-variance (true) or a code (false); the class decides it.
        image_key: entry of a batch that holds the images.
        colorize_nlabels: number of labels when the images are segmentation maps, which are then logged in colours.
        monitor: logged metric that selects the best checkpoint, such as val/rec_loss.
        scheduler_config: section of the learning-rate schedule, applied every step.
        lr_g_factor: the autoencoder's learning rate over the discriminator's.
        betas: Adam's two decay rates, in [0, 1).
        accumulate_grad_batches: batches per optimizer step, for a loss with a discriminator.
    """

    #: Attributes whose parameters the autoencoder's optimizer updates.
    trained_parts: tuple[str, ...] = ("encoder", "decoder", "quant_conv", "post_quant_conv")

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        embed_dim: int,
        double_z: bool,
        image_key: str = "image",
        colorize_nlabels: int | None = None,
        monitor: str | None = None,
        scheduler_config: Mapping[str, Any] | None = None,
        lr_g_factor: float = 1.0,
        betas: Sequence[float] = (0.5, 0.9),
        accumulate_grad_batches: int = 1,
    ) -> None:
        super().__init__()
        ddconfig = check_ddconfig(ddconfig)
        if bool(ddconfig.get("double_z", True)) != double_z:
            what = "mean and log-variance per latent channel" if double_z else "a code has no variance"
            raise UserError(f"ddconfig.double_z must be {str(double_z).lower()} for {type(self).__name__} ({what})")
        self.z_channels = ddconfig["z_channels"]
        self.image_key = image_key
        self.embed_dim = embed_dim
        self.learning_rate: float | None = None
        self.start_privacy: Any = None  # privacy account stored in the starting checkpoint
        #: Digests of the known data sets on which the weights were trained without privacy.
        self.unprotected_data: tuple[str, ...] = ()
        self.lr_g_factor = lr_g_factor
        self.betas = tuple(betas)
        self.scheduler_config = scheduler_config
        self.accumulate_grad_batches = accumulate_grad_batches
        if monitor is not None:
            self.monitor = monitor
        self.encoder = Encoder(**ddconfig)
        self.decoder = Decoder(**ddconfig)
        self.loss = instantiate_from_config(lossconfig)
        if colorize_nlabels is not None:
            self.register_buffer("colorize", torch.randn(3, colorize_nlabels, 1, 1))
        self.automatic_optimization = not self.has_discriminator

    @property
    def has_discriminator(self) -> bool:
        """Whether the loss trains a second network."""
        return bool(getattr(self.loss, "has_discriminator", False))

    def init_from_ckpt(self, path: str | os.PathLike, ignore_keys: Sequence[str] = ()) -> list[str]:
        """Load a checkpoint file's tensors; returns the keys that kept their values.

        Raises UserError when tensors are missing, unknown or of another shape.
        """
        checkpoint = read_checkpoint(path)
        self.unprotected_data = unprotected_data(checkpoint)
        self.start_privacy = inherited_privacy(checkpoint)
        state_dict = checkpoint["state_dict"]
        own = self.state_dict()
        ignore, allow_missing = list(ignore_keys), list(ignore_keys)
        for prefix in OPTIONAL:
            here, there = (any(key.startswith(prefix) for key in keys) for keys in (own, state_dict))
            if there and not here:
                ignore.append(prefix)
            if here and not there:
                allow_missing.append(prefix)
        absent = load_weights(self, state_dict, ignore=ignore, allow_missing=allow_missing, source=str(path))
        if "loss." in allow_missing:
            logger.warning("%s has no tensors of the training loss; the loss starts afresh", path)
        logger.info("restored the autoencoder from %s", path)
        return absent

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.unprotected_data:
            checkpoint[UNPROTECTED_DATA] = list(self.unprotected_data)

    def get_last_layer(self) -> Tensor:
        """The weight at which the loss balances its two gradients."""
        return self.decoder.conv_out.weight

    # --- training -----------------------------------------------------------------------------------------------------

    def get_input(self, batch: Mapping[str, Tensor], key: str) -> Tensor:
        """A batch's images (B,H,W,C) or (B,H,W) as contiguous float (B,C,H,W)."""
        x = batch[key]
        if x.ndim == 3:
            x = x[..., None]
        return x.permute(0, 3, 1, 2).to(memory_format=torch.contiguous_format).float()

    def outputs(self, inputs: Tensor) -> tuple:
        """The reconstructions of a batch of images, and further tensors that the loss needs."""
        raise NotImplementedError

    def loss_of(self, inputs: Tensor, outputs: tuple, optimizer_idx: int, split: str) -> tuple[Tensor, dict]:
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
        generator, discriminator = self.optimizers()
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

    def _scheduler_list(self) -> list:
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
            raise UserError(
                f"{type(self).__name__}.learning_rate is not set; give model.base_learning_rate in the config"
            )
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

    # --- images -----------------------------------------------------------------------------------------------------

    def to_rgb(self, x: Tensor) -> Tensor:
        """Random colours in [-1,1] for maps of more than three classes (`colorize_nlabels`)."""
        if not hasattr(self, "colorize"):
            raise UserError("images of more than 3 channels need colorize_nlabels: the number of channels")
        x = F.conv2d(x, self.colorize.to(x))
        return 2.0 * (x - x.min()) / (x.max() - x.min()) - 1.0


def _no_closure() -> None:
    """An empty closure; the gradients have already been computed."""
