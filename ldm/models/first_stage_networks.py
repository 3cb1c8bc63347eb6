"""The networks of a first stage: encoder, decoder, and their weights from a file; no trainer is needed or imported."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checkpoint import inherited_privacy, load_weights, read_checkpoint, unprotected_data
from ldm.errors import UserError, nearest
from ldm.modules.diffusionmodules.model import Decoder, Encoder

logger = logging.getLogger(__name__)

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


class FirstStageNetworks(nn.Module):
    """An encoder and a decoder; images (B,C,H,W) in [-1,1].

    A subclass makes the parts of its encoding. The training loss is made by the class that trains, `FirstStage`; here
    it is empty. Raises UserError for a bad ddconfig.

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
    colorize: Tensor  # a buffer, with `colorize_nlabels` only

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
            kind = (
                "AutoencoderKL (mean and log-variance per latent channel)"
                if double_z
                else "VQModel (codes, no variance)"
            )
            raise UserError(f"ddconfig.double_z must be {str(double_z).lower()} for {kind}")
        self.z_channels = ddconfig["z_channels"]
        self.image_key = image_key
        self.embed_dim = embed_dim
        self.learning_rate: float | None = None
        self.start_privacy: Any = None  # privacy account stored in the starting checkpoint
        #: Digests of the known data sets on which the weights were trained without privacy.
        self.unprotected_data: tuple[str, ...] = ()
        self.lr_g_factor = lr_g_factor
        self.betas = (float(betas[0]), float(betas[1]))
        self.scheduler_config = scheduler_config
        self.accumulate_grad_batches = accumulate_grad_batches
        if monitor is not None:
            self.monitor = monitor
        self.encoder = Encoder(**ddconfig)
        self.decoder = Decoder(**ddconfig)
        self._make_loss(lossconfig)
        if colorize_nlabels is not None:
            self.register_buffer("colorize", torch.randn(3, colorize_nlabels, 1, 1))

    def _make_loss(self, config: Mapping[str, Any]) -> None:
        self.loss: Any = nn.Identity()

    def init_from_ckpt(self, path: str | os.PathLike[str], ignore_keys: Sequence[str] = ()) -> list[str]:
        """Load a checkpoint file's tensors; returns the keys that kept their values.

        Raises UserError when tensors are missing, unknown or of another shape.
        """
        checkpoint = read_checkpoint(os.fspath(path))
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
        absent = load_weights(
            self,
            state_dict,
            ignore=ignore,
            allow_missing=allow_missing,
            source=str(path),
            model="the autoencoder of the configuration",
        )
        if "loss." in allow_missing:
            logger.warning("%s has no tensors of the training loss; the loss starts afresh", path)
        logger.info("restored the autoencoder from %s", path)
        return absent

    def get_input(self, batch: Mapping[str, Tensor], key: str) -> Tensor:
        """A batch's images (B,H,W,C) or (B,H,W) as contiguous float (B,C,H,W)."""
        x = batch[key]
        if x.ndim == 3:
            x = x[..., None]
        return x.permute(0, 3, 1, 2).to(memory_format=torch.contiguous_format).float()

    def get_last_layer(self) -> Tensor:
        """The weight at which the loss balances its two gradients."""
        return self.decoder.conv_out.weight

    # --- images -----------------------------------------------------------------------------------------------------

    def to_rgb(self, x: Tensor) -> Tensor:
        """Random colours in [-1,1] for maps of more than three classes (`colorize_nlabels`)."""
        if not hasattr(self, "colorize"):
            raise UserError("images of more than 3 channels need colorize_nlabels: the number of channels")
        x = F.conv2d(x, self.colorize.to(x))
        return 2.0 * (x - x.min()) / (x.max() - x.min()) - 1.0
