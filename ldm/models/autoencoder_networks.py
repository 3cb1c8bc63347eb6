"""The networks of the first stage with a normal posterior (Rombach et al. 2022, section 3.1); no trainer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ldm.models.first_stage_networks import FirstStageNetworks
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution


class AutoencoderKLNetworks(FirstStageNetworks):
    """Variational autoencoder of images (B,C,H,W) in [-1,1].

    Latents are (B, embed_dim, H/f, W/f) with f = 2**(len(ch_mult)-1). For `lossconfig` and training see `FirstStage`.
    `ckpt_path` is loaded strictly except for keys starting with one of `ignore_keys`; a checkpoint's `loss.*` tensors
    are dropped when this model's loss has none, and may be absent altogether. With `freeze_encoder` only the decoder is
    trained, so that the latents do not change and diffusion models of them stay valid. Raises UserError for a bad
    ddconfig.

    Args:
        ckpt_path: checkpoint whose weights are loaded.
        ignore_keys: prefixes of keys that are not loaded.
        freeze_encoder: train the decoder only.
    """

    def __init__(
        self,
        ddconfig: Mapping[str, Any],
        lossconfig: Mapping[str, Any],
        embed_dim: int,
        ckpt_path: str | os.PathLike[str] | None = None,
        ignore_keys: Sequence[str] | None = None,
        image_key: str = "image",
        colorize_nlabels: int | None = None,
        monitor: str | None = None,
        scheduler_config: Mapping[str, Any] | None = None,
        betas: Sequence[float] = (0.5, 0.9),
        accumulate_grad_batches: int = 1,
        freeze_encoder: bool = False,
    ) -> None:
        super().__init__(
            ddconfig,
            lossconfig,
            embed_dim,
            double_z=True,
            image_key=image_key,
            colorize_nlabels=colorize_nlabels,
            monitor=monitor,
            scheduler_config=scheduler_config,
            betas=betas,
            accumulate_grad_batches=accumulate_grad_batches,
        )
        self.quant_conv = nn.Conv2d(2 * self.z_channels, 2 * embed_dim, kernel_size=1)
        self.post_quant_conv = nn.Conv2d(embed_dim, self.z_channels, kernel_size=1)
        if freeze_encoder:
            self.trained_parts = ("decoder", "post_quant_conv")
            self.encoder.requires_grad_(False)
            self.quant_conv.requires_grad_(False)
        if ckpt_path is not None:
            self.init_from_ckpt(ckpt_path, ignore_keys or ())

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
        """Reconstructions and posterior; decodes a sample of the posterior or its mean."""
        posterior = self.encode(input)
        z = posterior.sample(generator) if sample_posterior else posterior.mode()
        return self.decode(z), posterior
