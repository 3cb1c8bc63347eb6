"""The first stage: an autoencoder with a normal posterior (Rombach et al. 2022, section 3.1)."""

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

from ldm.checkpoint import load_weights, read_checkpoint
from ldm.config import instantiate_from_config
from ldm.errors import UserError, nearest
from ldm.modules.diffusionmodules.model import Decoder, Encoder
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution

logger = logging.getLogger(__name__)

GENERATOR, DISCRIMINATOR = 0, 1


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


class AutoencoderKL(pl.LightningModule):
    """Variational autoencoder of images (B,C,H,W) in [-1,1].

    Latents are (B, embed_dim, H/f, W/f) with f = 2**(len(ch_mult)-1). `lossconfig` names the training loss;
    `torch.nn.Identity` makes a model that only encodes and decodes. A loss whose `has_discriminator` is true gets two
    optimizers and manual optimisation: every batch takes one step of the autoencoder and, once the discriminator has
    started, one of the discriminator on the same reconstructions; `global_step` counts the first. Lightning cannot
    accumulate gradients in that mode, so `accumulate_grad_batches` is a parameter here.

    The driver sets `learning_rate` before fitting. `scheduler_config` is an `ldm.lr_scheduler` target, applied every
    step. `ckpt_path` is loaded strictly except for keys starting with one of `ignore_keys`; a checkpoint's `loss.*`
    tensors are dropped when this model's loss has none, and may be absent altogether. Raises UserError for a bad
    ddconfig.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        embed_dim: int,
        ckpt_path: str | os.PathLike | None = None,
        ignore_keys: Sequence[str] | None = None,
        image_key: str = "image",
        colorize_nlabels: int | None = None,
        monitor: str | None = None,
        scheduler_config: Mapping[str, Any] | None = None,
        betas: Sequence[float] = (0.5, 0.9),
        accumulate_grad_batches: int = 1,
    ) -> None:
        super().__init__()
        ddconfig = check_ddconfig(ddconfig)
        if not ddconfig.get("double_z", True):
            raise UserError(
                "ddconfig.double_z must be true for AutoencoderKL (mean and log-variance per latent channel)"
            )
        self.image_key = image_key
        self.embed_dim = embed_dim
        self.learning_rate: float | None = None
        self.betas = tuple(betas)
        self.scheduler_config = scheduler_config
        self.accumulate_grad_batches = accumulate_grad_batches
        if monitor is not None:
            self.monitor = monitor

        z_channels = ddconfig["z_channels"]
        self.encoder = Encoder(**ddconfig)
        self.decoder = Decoder(**ddconfig)
        self.loss = instantiate_from_config(lossconfig)
        self.quant_conv = nn.Conv2d(2 * z_channels, 2 * embed_dim, kernel_size=1)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, kernel_size=1)
        if colorize_nlabels is not None:
            self.register_buffer("colorize", torch.randn(3, colorize_nlabels, 1, 1))
        self.automatic_optimization = not self.has_discriminator
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys or ())

    @property
    def has_discriminator(self) -> bool:
        """Whether the loss trains a second network."""
        return bool(getattr(self.loss, "has_discriminator", False))

    def init_from_ckpt(self, path: str | os.PathLike, ignore_keys: Sequence[str] = ()) -> None:
        """Load a checkpoint file's tensors. Raises UserError when some are missing, unknown or of another shape."""
        state_dict = read_checkpoint(path)["state_dict"]
        own_loss = bool(self.loss.state_dict())
        stored_loss = any(key.startswith("loss.") for key in state_dict)
        ignore = [*ignore_keys] if own_loss else [*ignore_keys, "loss."]
        if own_loss and not stored_loss:
            logger.warning("%s has no tensors of the training loss; the loss starts afresh", path)
        allow_missing = [*ignore_keys] if stored_loss else [*ignore_keys, "loss."]
        load_weights(self, state_dict, ignore=ignore, allow_missing=allow_missing, source=str(path))
        logger.info("restored the autoencoder from %s", path)

    # --- inference ----------------------------------------------------------------------------------------------------

    def encode(self, x: Tensor) -> DiagonalGaussianDistribution:
        """Posterior of images (B,C,H,W) in [-1,1]; its `parameters` are (B, 2*embed_dim, h, w)."""
        return DiagonalGaussianDistribution(self.quant_conv(self.encoder(x)))

    def decode(self, z: Tensor) -> Tensor:
        """Images, nominally in [-1,1] but not clamped, of latents (B,embed_dim,h,w)."""
        return self.decoder(self.post_quant_conv(z))

    def forward(
        self, input: Tensor, sample_posterior: bool = True, generator: torch.Generator | None = None
    ) -> tuple[Tensor, DiagonalGaussianDistribution]:
        """Reconstructions and posterior; decodes a draw from the posterior, or its mean."""
        posterior = self.encode(input)
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        return self.decode(z), posterior

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

    def _loss(self, inputs: Tensor, outputs: tuple, optimizer_idx: int, split: str) -> tuple[Tensor, dict[str, Tensor]]:
        reconstructions, posterior = outputs
        last_layer = self.get_last_layer()
        return self.loss(
            inputs, reconstructions, posterior, optimizer_idx, self.global_step, last_layer=last_layer, split=split
        )

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor | None:
        inputs = self.get_input(batch, self.image_key)
        if self.has_discriminator:
            self._adversarial_step(inputs, batch_idx)
            return None
        loss, log = self._loss(inputs, self(inputs), GENERATOR, "train")
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
        outputs = self(inputs)
        loss, log = self._loss(inputs, outputs, GENERATOR, "train")
        self.manual_backward(loss / window)
        self.untoggle_optimizer(generator)
        if use_discriminator:
            disc_loss, disc_log = self._loss(inputs, outputs, DISCRIMINATOR, "train")
            self.manual_backward(disc_loss / window)
            log |= disc_log
            self.log("discloss", disc_loss.detach(), prog_bar=True, logger=False, batch_size=len(inputs))
        self.log("aeloss", loss.detach(), prog_bar=True, logger=False, batch_size=len(inputs))
        self.log_dict(log, batch_size=len(inputs))
        if last:
            self._step_both(generator, discriminator, use_discriminator)

    def _step_both(self, generator: Any, discriminator: Any, use_discriminator: bool) -> None:
        if use_discriminator:
            # Through the strategy, not the wrapper, so that `global_step` (which disc_start and max_steps go by) counts
            # the autoencoder's steps only.
            self.trainer.strategy.optimizer_step(discriminator.optimizer, closure=_no_closure)
            discriminator.zero_grad()
        else:
            # Without gradients this moves nothing; it tells the scheduler that steps are being taken.
            discriminator.optimizer.step()
        generator.step()
        generator.zero_grad()
        for scheduler in self._scheduler_list():
            scheduler.step()

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
        outputs = self(inputs)
        _, log = self._loss(inputs, outputs, GENERATOR, split)
        if self.has_discriminator:
            log |= self._loss(inputs, outputs, DISCRIMINATOR, split)[1]
        self.log_dict(log, batch_size=len(inputs), sync_dist=True)

    def _optimised(self) -> list[nn.Parameter]:
        parts = (self.encoder, self.decoder, self.quant_conv, self.post_quant_conv)
        return [parameter for part in parts for parameter in part.parameters()]

    def configure_optimizers(self) -> Any:
        """Adam for the autoencoder and for a discriminator. Raises UserError when training cannot start."""
        if isinstance(self.loss, nn.Identity):
            raise UserError(
                "lossconfig.target: torch.nn.Identity is for inference; name a loss of ldm.modules.losses to train"
            )
        if self.learning_rate is None:
            raise UserError("AutoencoderKL.learning_rate is not set; give model.base_learning_rate in the config")
        if hasattr(self.loss, "check_ready"):
            self.loss.check_ready()
        groups = [self._optimised()]
        if self.has_discriminator:
            groups.append(list(self.loss.discriminator.parameters()))
        optimizers = [torch.optim.Adam(group, lr=self.learning_rate, betas=self.betas) for group in groups]
        if self.scheduler_config is None:
            return optimizers
        schedule = instantiate_from_config(self.scheduler_config).schedule
        lambdas = [torch.optim.lr_scheduler.LambdaLR(optimizer, lr_lambda=schedule) for optimizer in optimizers]
        return optimizers, [{"scheduler": scheduler, "interval": "step", "frequency": 1} for scheduler in lambdas]

    # --- pictures -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def log_images(self, batch: Mapping[str, Tensor], count: int = 8) -> dict[str, Tensor]:
        """Pictures to look at, (n,C,H,W) nominally in [-1,1]: inputs, reconstructions and decoded normal noise."""
        x = self.get_input(batch, self.image_key)[:count].to(self.device)
        reconstructions, posterior = self(x)
        samples = self.decode(torch.randn_like(posterior.mean))
        if x.shape[1] > 3:
            x, reconstructions, samples = (self.to_rgb(picture) for picture in (x, reconstructions, samples))
        return {"samples": samples, "reconstructions": reconstructions, "inputs": x}

    def to_rgb(self, x: Tensor) -> Tensor:
        """Random colours in [-1,1] for maps of more than three classes (`colorize_nlabels`)."""
        if not hasattr(self, "colorize"):
            raise UserError("pictures of more than 3 channels need colorize_nlabels: the number of channels")
        x = F.conv2d(x, self.colorize.to(x))
        return 2.0 * (x - x.min()) / (x.max() - x.min()) - 1.0


def _no_closure() -> None:
    """The gradients are there already."""
