"""Perceptual and adversarial autoencoder loss (Esser et al. 2021, eqs. 5-7; Rombach et al. 2022, section G)."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.losses.adversarial import AdversarialLoss, Logged, Measured, named


class DummyLoss(nn.Identity):
    """No loss, for an autoencoder that only encodes and decodes; old configurations use this name."""


class LPIPSWithDiscriminator(AdversarialLoss):
    """Absolute pixel error and LPIPS with scale exp(logvar), KL, and the adversarial loss of a patch discriminator.

    generator: sum over pixels of (pixelloss_weight*|x-y| + perceptual_weight*LPIPS)/exp(logvar) + logvar, plus
    kl_weight*KL, both averaged over images, plus lambda*disc_factor*(-mean D(y)) from step `disc_start` on, where
    lambda is disc_weight times the ratio of the two gradients' norms at the decoder's last layer (at most 1e4).
    discriminator: `disc_loss` ("hinge" or "vanilla") times disc_factor.

    `logvar` is stored but not trained, as in the published models. See `AdversarialLoss` for the other parameters and
    errors.

    Args:
        logvar_init: starting value of the logarithm of the reconstruction's variance.
        kl_weight: weight of the KL divergence, >= 0.
    """

    def __init__(
        self,
        disc_start: int,
        logvar_init: float = 0.0,
        kl_weight: float = 1.0,
        pixelloss_weight: float = 1.0,
        disc_num_layers: int = 3,
        disc_in_channels: int = 3,
        disc_factor: float = 1.0,
        disc_weight: float = 1.0,
        perceptual_weight: float = 1.0,
        use_actnorm: bool = False,
        disc_conditional: bool = False,
        disc_loss: str = "hinge",
        vgg_weights: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(
            disc_start=disc_start,
            pixelloss_weight=pixelloss_weight,
            disc_num_layers=disc_num_layers,
            disc_in_channels=disc_in_channels,
            disc_factor=disc_factor,
            disc_weight=disc_weight,
            perceptual_weight=perceptual_weight,
            use_actnorm=use_actnorm,
            disc_conditional=disc_conditional,
            disc_loss=disc_loss,
            vgg_weights=vgg_weights,
        )
        self.kl_weight = kl_weight
        self.logvar = nn.Parameter(torch.full((), float(logvar_init)))

    def forward(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        posteriors: DiagonalGaussianDistribution,
        optimizer_idx: int,
        global_step: int,
        last_layer: Tensor | None = None,
        cond: Tensor | None = None,
        split: str = "train",
        weights: Tensor | None = None,
    ) -> Logged:
        """Loss (scalar) and numbers to log as "split/name": generator's (optimizer_idx 0) or discriminator's (1).

        Images (B,C,H,W) in [-1,1]. `last_layer` is the decoder's last weight, `weights` broadcasts against the
        pixel errors.
        """
        factor = self.factor_at(global_step)
        if optimizer_idx == 0:
            total, log = self._generator(inputs, reconstructions, posteriors, factor, last_layer, cond, weights)
        else:
            total, log = self._discriminator(inputs, reconstructions, factor, cond)
        return total, named(log, split)

    def _generator(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        posteriors: DiagonalGaussianDistribution,
        factor: float,
        last_layer: Tensor | None,
        cond: Tensor | None,
        weights: Tensor | None,
    ) -> Measured:
        rec_loss = self.pixel_weight * (inputs - reconstructions).abs()
        rec_loss = rec_loss + self._perceptual(inputs, reconstructions)
        nll = rec_loss / self.logvar.exp() + self.logvar
        weighted = nll if weights is None else weights * nll
        weighted_nll = weighted.sum() / inputs.shape[0]
        kl_loss = posteriors.kl().mean()
        total = weighted_nll + self.kl_weight * kl_loss

        g_loss, d_weight = self._verdict(weighted_nll, reconstructions, factor, last_layer, cond)
        total = total + d_weight * factor * g_loss
        log: dict[str, Tensor | float] = {
            "total_loss": total,
            "logvar": self.logvar,
            "kl_loss": kl_loss,
            "nll_loss": nll.sum() / inputs.shape[0],
            "rec_loss": rec_loss.mean(),
            "d_weight": d_weight,
            "disc_factor": factor,
            "g_loss": g_loss,
        }
        return total, log
