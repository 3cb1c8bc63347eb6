"""Autoencoder loss without networks: pixel error plus KL divergence."""

from __future__ import annotations

from torch import Tensor, nn

from ldm.errors import UserError
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution

PIXEL_ERRORS = ("l2", "l1")


class ReconstructionKL(nn.Module):
    """Mean pixel error plus `kl_weight` times the KL divergence per pixel (a beta-VAE, Higgins et al. 2017).

    loss = mean(error) + kl_weight * mean over images of KL / (C*H*W), with error = squared ("l2") or absolute ("l1")
    difference of images in [-1,1]. Needs no weights and no discriminator. Raises UserError for another `pixel` name.

    Args:
        pixel: the pixel error: l2 (squared) or l1 (absolute).
        kl_weight: weight of the KL divergence per pixel, >= 0.
    """

    has_discriminator = False

    def __init__(self, pixel: str = "l2", kl_weight: float = 1.0e-4) -> None:
        super().__init__()
        if pixel not in PIXEL_ERRORS:
            raise UserError(f"ReconstructionKL pixel: {pixel!r} is unknown; use one of {', '.join(PIXEL_ERRORS)}")
        self.pixel = pixel
        self.kl_weight = kl_weight

    def forward(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        posteriors: DiagonalGaussianDistribution,
        optimizer_idx: int = 0,
        global_step: int = 0,
        last_layer: Tensor | None = None,
        split: str = "train",
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss (scalar) and numbers to log as "split/name".

        `optimizer_idx`, `global_step` and `last_layer` only matter to losses with a discriminator.
        """
        difference = inputs - reconstructions
        error = difference.square() if self.pixel == "l2" else difference.abs()
        rec_loss = error.mean()
        kl_loss = posteriors.kl().mean() / inputs[0].numel()
        total = rec_loss + self.kl_weight * kl_loss
        log = {"total_loss": total, "rec_loss": rec_loss, "kl_loss": kl_loss}
        return total, {f"{split}/{name}": value.detach() for name, value in log.items()}
