"""The first stage: an autoencoder with a normal posterior (Rombach et al. 2022, section 3.1), as Lightning trains it.

The quantising first stages are re-exported here because YAML files of the lineage look them up under this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ldm.models.autoencoder_networks import AutoencoderKLNetworks
from ldm.models.first_stage import FirstStage
from ldm.models.first_stage_networks import check_ddconfig
from ldm.models.vq_autoencoder import VQModel, VQModelInterface
from ldm.models.vq_networks import IdentityFirstStage
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution

__all__ = ["AutoencoderKL", "IdentityFirstStage", "VQModel", "VQModelInterface", "check_ddconfig"]


class AutoencoderKL(AutoencoderKLNetworks, FirstStage):
    """`AutoencoderKLNetworks` with the training of `FirstStage`; its parameters are those of the networks."""

    def outputs(self, inputs: Tensor) -> tuple[Tensor, DiagonalGaussianDistribution]:
        return self(inputs)

    def loss_of(
        self, inputs: Tensor, outputs: tuple[Any, ...], optimizer_idx: int, split: str
    ) -> tuple[Tensor, dict[str, Tensor]]:
        reconstructions, posterior = outputs
        last_layer = self.get_last_layer()
        return self.loss(
            inputs, reconstructions, posterior, optimizer_idx, self.global_step, last_layer=last_layer, split=split
        )

    # --- images -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def log_images(self, batch: Mapping[str, Tensor], count: int = 8) -> dict[str, Tensor]:
        """Images (n,C,H,W) for the logger, nominally in [-1,1]: inputs, reconstructions and decoded normal noise."""
        x = self.get_input(batch, self.image_key)[:count].to(self.device)
        reconstructions, posterior = self(x)
        samples = self.decode(torch.randn_like(posterior.mean))
        if x.shape[1] > 3:
            x, reconstructions, samples = (self.to_rgb(image) for image in (x, reconstructions, samples))
        return {"samples": samples, "reconstructions": reconstructions, "inputs": x}
