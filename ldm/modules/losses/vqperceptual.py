"""Perceptual and adversarial loss of a quantising autoencoder (Esser et al. 2021, eqs. 4-7)."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from ldm.errors import UserError, nearest
from ldm.modules.losses.adversarial import AdversarialLoss, Logged, Measured, named

PIXEL_LOSSES = ("l1", "l2")
PERCEPTUAL_LOSSES = ("lpips",)


class VQLPIPSWithDiscriminator(AdversarialLoss):
    """Pixel error, LPIPS, codebook loss and the adversarial loss of a patch discriminator.

    generator: mean over pixels of pixelloss_weight*error(x,y) + perceptual_weight*LPIPS, plus codebook_weight times the
    codebook loss, plus lambda*disc_factor*(-mean D(y)) from step `disc_start` on; the error is |x-y| ("l1") or its
    square ("l2"). discriminator: `disc_loss` ("hinge" or "vanilla") times disc_factor.

    With `n_classes`, the number of codes, the log also has the number of codes used in a batch (`cluster_usage`) and
    their perplexity (`perplexity`, in [1, n_classes]). See `AdversarialLoss` for the other parameters. Raises UserError
    for an unknown `disc_loss`, `pixel_loss` or `perceptual_loss`.

    Args:
        codebook_weight: weight of the codebook loss, >= 0.
        n_classes: number of codes, for the logged code usage.
        perceptual_loss: lpips, the only choice.
        pixel_loss: l1 (absolute) or l2 (squared) error.
    """

    def __init__(
        self,
        disc_start: int,
        codebook_weight: float = 1.0,
        pixelloss_weight: float = 1.0,
        disc_num_layers: int = 3,
        disc_in_channels: int = 3,
        disc_factor: float = 1.0,
        disc_weight: float = 1.0,
        perceptual_weight: float = 1.0,
        use_actnorm: bool = False,
        disc_conditional: bool = False,
        disc_ndf: int = 64,
        disc_loss: str = "hinge",
        n_classes: int | None = None,
        perceptual_loss: str = "lpips",
        pixel_loss: str = "l1",
        vgg_weights: str | os.PathLike[str] | None = None,
    ) -> None:
        _check("perceptual_loss", perceptual_loss, PERCEPTUAL_LOSSES)
        _check("pixel_loss", pixel_loss, PIXEL_LOSSES)
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
            disc_ndf=disc_ndf,
            vgg_weights=vgg_weights,
        )
        self.codebook_weight = codebook_weight
        self.n_classes = n_classes
        self.pixel_loss = pixel_loss

    def forward(
        self,
        codebook_loss: Tensor | None,
        inputs: Tensor,
        reconstructions: Tensor,
        optimizer_idx: int,
        global_step: int,
        last_layer: Tensor | None = None,
        cond: Tensor | None = None,
        split: str = "train",
        predicted_indices: Tensor | None = None,
    ) -> Logged:
        """Loss (scalar) and numbers to log as "split/name": generator's (optimizer_idx 0) or discriminator's (1).

        Images (B,C,H,W) in [-1,1]. `codebook_loss` comes from the quantiser, as do the codes `predicted_indices`
        (any shape). `last_layer` is the decoder's last weight.
        """
        factor = self.factor_at(global_step)
        if optimizer_idx == 0:
            codebook_loss = inputs.new_zeros(()) if codebook_loss is None else codebook_loss.mean()
            total, log = self._generator(codebook_loss, inputs, reconstructions, factor, last_layer, cond)
            if self.n_classes is not None and predicted_indices is not None:
                log["perplexity"], log["cluster_usage"] = measure_perplexity(predicted_indices, self.n_classes)
        else:
            total, log = self._discriminator(inputs, reconstructions, factor, cond)
        return total, named(log, split)

    def _generator(
        self,
        codebook_loss: Tensor,
        inputs: Tensor,
        reconstructions: Tensor,
        factor: float,
        last_layer: Tensor | None,
        cond: Tensor | None,
    ) -> Measured:
        difference = inputs - reconstructions
        pixels = difference.abs() if self.pixel_loss == "l1" else difference.square()
        perceptual = self._perceptual(inputs, reconstructions)
        nll_loss = (self.pixel_weight * pixels + perceptual).mean()
        g_loss, d_weight = self._verdict(nll_loss, reconstructions, factor, last_layer, cond)
        total = nll_loss + d_weight * factor * g_loss + self.codebook_weight * codebook_loss
        log: dict[str, Tensor | float] = {
            "total_loss": total,
            "quant_loss": codebook_loss,
            "nll_loss": nll_loss,
            "rec_loss": nll_loss,
            "p_loss": perceptual.mean(),
            "d_weight": d_weight,
            "disc_factor": factor,
            "g_loss": g_loss,
        }
        return total, log


def measure_perplexity(indices: Tensor, n_embed: int) -> tuple[Tensor, Tensor]:
    """Perplexity exp(entropy) of the codes in a batch, within [1, n_embed], and the number of distinct codes."""
    share = torch.bincount(indices.flatten().long(), minlength=n_embed).float() / max(1, indices.numel())
    return torch.exp(-torch.xlogy(share, share).sum()), (share > 0).sum().float()


def _check(parameter: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(
            f"VQLPIPSWithDiscriminator {parameter}: {value!r} is unknown; use {' or '.join(known)}"
            f"{nearest(value, known)}"
        )
