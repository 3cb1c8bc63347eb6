"""Perceptual and adversarial autoencoder loss (Esser et al. 2021, eqs. 5-7; Rombach et al. 2022, section G)."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from ldm.errors import UserError, nearest
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.losses.discriminator import DISCRIMINATOR_LOSSES, NLayerDiscriminator
from ldm.modules.losses.lpips import LPIPS

Logged = tuple[Tensor, dict[str, Tensor]]


class LPIPSWithDiscriminator(nn.Module):
    """Absolute pixel error and LPIPS with scale exp(logvar), KL, and a patch discriminator's verdict.

    generator: sum over pixels of (pixelloss_weight*|x-y| + perceptual_weight*LPIPS)/exp(logvar) + logvar, plus
    kl_weight*KL, both averaged over images, plus lambda*disc_factor*(-mean D(y)) from step `disc_start` on, where
    lambda is disc_weight times the ratio of the two gradients' norms at the decoder's last layer (at most 1e4).
    discriminator: `disc_loss` ("hinge" or "vanilla") times disc_factor.

    `disc_factor: 0` trains without the discriminator (its tensors stay, for the checkpoint's sake).
    `disc_conditional` joins `cond` to the pictures' channels, which `disc_in_channels` must count. `logvar` is stored
    but, as in the published models, no optimizer moves it. `vgg_weights` names torchvision's VGG16 file when it is
    not in the usual place (see `ldm.modules.losses.lpips`). Raises UserError for an unknown `disc_loss`.
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
        vgg_weights: str | os.PathLike | None = None,
    ) -> None:
        super().__init__()
        if disc_loss not in DISCRIMINATOR_LOSSES:
            names = ", ".join(DISCRIMINATOR_LOSSES)
            hint = nearest(disc_loss, DISCRIMINATOR_LOSSES)
            raise UserError(f"LPIPSWithDiscriminator disc_loss: {disc_loss!r} is unknown; use one of {names}{hint}")
        self.kl_weight = kl_weight
        self.pixel_weight = pixelloss_weight
        self.perceptual_weight = perceptual_weight
        self.disc_factor = disc_factor
        self.discriminator_iter_start = disc_start
        self.discriminator_weight = disc_weight
        self.disc_conditional = disc_conditional
        self.disc_loss = DISCRIMINATOR_LOSSES[disc_loss]

        self.logvar = nn.Parameter(torch.full((), float(logvar_init)))
        if perceptual_weight > 0:
            self.perceptual_loss = LPIPS(vgg_weights)
        self.discriminator = NLayerDiscriminator(disc_in_channels, n_layers=disc_num_layers, use_actnorm=use_actnorm)

    @property
    def has_discriminator(self) -> bool:
        """Whether training needs a second optimizer."""
        return self.disc_factor > 0

    def check_ready(self) -> None:
        """Raise UserError when training cannot start for lack of the perceptual network's weights."""
        if self.perceptual_weight > 0:
            self.perceptual_loss.check_ready()

    def factor_at(self, global_step: int) -> float:
        """The discriminator's factor at an optimizer step: 0 before `disc_start`, then `disc_factor`."""
        return self.disc_factor if global_step >= self.discriminator_iter_start else 0.0

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

        Pictures (B,C,H,W) in [-1,1]. `last_layer` is the decoder's last weight, `weights` broadcasts against the
        pixel errors.
        """
        factor = self.factor_at(global_step)
        if optimizer_idx == 0:
            total, log = self._generator(inputs, reconstructions, posteriors, factor, last_layer, cond, weights)
        else:
            total, log = self._discriminator(inputs, reconstructions, factor, cond)
        return total, {f"{split}/{name}": torch.as_tensor(value).detach() for name, value in log.items()}

    def _generator(
        self,
        inputs: Tensor,
        reconstructions: Tensor,
        posteriors: DiagonalGaussianDistribution,
        factor: float,
        last_layer: Tensor | None,
        cond: Tensor | None,
        weights: Tensor | None,
    ) -> Logged:
        rec_loss = self.pixel_weight * (inputs - reconstructions).abs()
        if self.perceptual_weight > 0:
            rec_loss = rec_loss + self.perceptual_weight * self.perceptual_loss(inputs, reconstructions)
        nll = rec_loss / self.logvar.exp() + self.logvar
        weighted = nll if weights is None else weights * nll
        weighted_nll = weighted.sum() / inputs.shape[0]
        kl_loss = posteriors.kl().mean()
        total = weighted_nll + self.kl_weight * kl_loss

        g_loss = d_weight = weighted_nll.new_zeros(())
        if factor > 0:
            g_loss = -self._logits(reconstructions, cond).mean()
            d_weight = self._adaptive_weight(weighted_nll, g_loss, last_layer)
            total = total + d_weight * factor * g_loss
        log = {
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

    def _discriminator(self, inputs: Tensor, reconstructions: Tensor, factor: float, cond: Tensor | None) -> Logged:
        logits_real = self._logits(inputs.detach(), cond)
        logits_fake = self._logits(reconstructions.detach(), cond)
        total = factor * self.disc_loss(logits_real, logits_fake)
        log = {"disc_loss": total, "logits_real": logits_real.mean(), "logits_fake": logits_fake.mean()}
        return total, log

    def _logits(self, images: Tensor, cond: Tensor | None) -> Tensor:
        if self.disc_conditional:
            if cond is None:
                raise UserError(
                    "disc_conditional: true needs a condition, and this autoencoder has none; set it to false"
                )
            images = torch.cat((images, cond), dim=1)
        return self.discriminator(images.contiguous())

    def _adaptive_weight(self, nll_loss: Tensor, g_loss: Tensor, last_layer: Tensor | None) -> Tensor:
        """lambda of Esser et al. 2021, eq. 7; 0 where there are no gradients (validation)."""
        if last_layer is None or not torch.is_grad_enabled() or not last_layer.requires_grad:
            return nll_loss.new_zeros(())
        (nll_grad,) = torch.autograd.grad(nll_loss, last_layer, retain_graph=True)
        (g_grad,) = torch.autograd.grad(g_loss, last_layer, retain_graph=True)
        ratio = nll_grad.norm() / (g_grad.norm() + 1e-4)
        return self.discriminator_weight * ratio.clamp(0.0, 1e4).detach()
