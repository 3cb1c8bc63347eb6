"""Base class of the autoencoder losses with a discriminator (Esser et al. 2021, eqs. 5-7)."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ldm.errors import UserError, nearest
from ldm.modules.losses.discriminator import DISCRIMINATOR_LOSSES, NLayerDiscriminator
from ldm.modules.losses.lpips import LPIPS

Measured = tuple[Tensor, dict[str, Tensor | float]]
Logged = tuple[Tensor, dict[str, Tensor]]


class AdversarialLoss(nn.Module):
    """Weights of pixel, perceptual and adversarial error, the perceptual network and the patch discriminator.

    The adversarial loss counts from step `disc_start` on with the factor lambda*disc_factor, where lambda is
    `disc_weight` times the ratio of the two gradients' norms at the decoder's last layer (at most 1e4).

    `disc_factor: 0` trains without the discriminator (its tensors remain for compatible checkpoints).
    `disc_conditional` joins `cond` to the images' channels, which `disc_in_channels` must count. `vgg_weights` names
    torchvision's VGG16 file when it is not in the usual place (see `ldm.modules.losses.lpips`). Raises UserError for
    an unknown `disc_loss`.

    Args:
        disc_start: step from which on the discriminator counts.
        pixelloss_weight: weight of the pixel error, >= 0.
        disc_num_layers: layers of the patch discriminator, >= 1.
        disc_in_channels: channels of the images that the discriminator sees.
        disc_factor: weight of the adversarial terms; 0 switches them off.
        disc_weight: multiplier of the adaptive weight lambda.
        perceptual_weight: weight of LPIPS; 0 switches it off, and no VGG weights are needed.
        use_actnorm: activation normalisation in the discriminator in place of batch normalisation.
        disc_conditional: the discriminator also sees the condition.
        disc_loss: hinge or vanilla.
        disc_ndf: channels of the discriminator's first layer.
        vgg_weights: file of VGG16's weights, when it is not in the usual place.
    """

    def __init__(
        self,
        disc_start: int,
        pixelloss_weight: float,
        disc_num_layers: int,
        disc_in_channels: int,
        disc_factor: float,
        disc_weight: float,
        perceptual_weight: float,
        use_actnorm: bool,
        disc_conditional: bool,
        disc_loss: str,
        disc_ndf: int = 64,
        vgg_weights: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        if disc_loss not in DISCRIMINATOR_LOSSES:
            names = ", ".join(DISCRIMINATOR_LOSSES)
            hint = nearest(disc_loss, DISCRIMINATOR_LOSSES)
            raise UserError(f"{type(self).__name__} disc_loss: {disc_loss!r} is unknown; use one of {names}{hint}")
        self.pixel_weight = pixelloss_weight
        self.perceptual_weight = perceptual_weight
        self.disc_factor = disc_factor
        self.discriminator_iter_start = disc_start
        self.discriminator_weight = disc_weight
        self.disc_conditional = disc_conditional
        self.disc_loss = DISCRIMINATOR_LOSSES[disc_loss]
        if perceptual_weight > 0:
            self.perceptual_loss = LPIPS(vgg_weights)
        self.discriminator = NLayerDiscriminator(
            disc_in_channels, ndf=disc_ndf, n_layers=disc_num_layers, use_actnorm=use_actnorm
        )

    @property
    def has_discriminator(self) -> bool:
        """Whether training needs a second optimizer."""
        return self.disc_factor > 0

    def check_ready(self) -> None:
        """Raise UserError when the weights of the perceptual network are missing."""
        if self.perceptual_weight > 0:
            self.perceptual_loss.check_ready()

    def factor_at(self, global_step: int) -> float:
        """The discriminator's factor at an optimizer step: 0 before `disc_start`, then `disc_factor`."""
        return self.disc_factor if global_step >= self.discriminator_iter_start else 0.0

    def _perceptual(self, inputs: Tensor, reconstructions: Tensor) -> Tensor:
        """Weighted perceptual distance (B,1,1,1), or a scalar 0 without that network."""
        if self.perceptual_weight > 0:
            return self.perceptual_weight * self.perceptual_loss(inputs, reconstructions)
        return inputs.new_zeros(())

    def _verdict(
        self, nll_loss: Tensor, reconstructions: Tensor, factor: float, last_layer: Tensor | None, cond: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The generator's adversarial loss and its weight lambda; both 0 before the discriminator starts."""
        if factor == 0:
            return nll_loss.new_zeros(()), nll_loss.new_zeros(())
        g_loss = -self._logits(reconstructions, cond).mean()
        return g_loss, self._adaptive_weight(nll_loss, g_loss, last_layer)

    def _discriminator(self, inputs: Tensor, reconstructions: Tensor, factor: float, cond: Tensor | None) -> Measured:
        """The discriminator's own loss; no gradient reaches the autoencoder."""
        logits_real = self._logits(inputs.detach(), cond)
        logits_fake = self._logits(reconstructions.detach(), cond)
        total = factor * self.disc_loss(logits_real, logits_fake)
        return total, {"disc_loss": total, "logits_real": logits_real.mean(), "logits_fake": logits_fake.mean()}

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


def named(log: Mapping[str, Tensor | float], split: str) -> dict[str, Tensor]:
    """Metrics to log as "split/name", detached from the graph."""
    return {f"{split}/{name}": torch.as_tensor(value).detach() for name, value in log.items()}
