"""Patch discriminator (Isola et al. 2017, pix2pix) and its losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError


class ActNorm(nn.Module):
    """Per-channel affine layer, initialized on the first training batch to mean 0, std 1 (Kingma, Dhariwal 2018)."""

    initialized: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, num_features, 1, 1))
        self.scale = nn.Parameter(torch.ones(1, num_features, 1, 1))
        self.register_buffer("initialized", torch.tensor(0, dtype=torch.uint8))

    @torch.no_grad()
    def _initialise(self, x: Tensor) -> None:
        deviation, mean = torch.std_mean(x, dim=(0, 2, 3), keepdim=True)
        self.loc.copy_(-mean)
        self.scale.copy_(1.0 / (deviation + 1e-6))
        self.initialized.fill_(1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not self.initialized:
            self._initialise(x)
        return self.scale * (x + self.loc)


def _init_weights(module: nn.Module) -> None:
    """Initial values of pix2pix: convolutions N(0, 0.02), norm weights N(1, 0.02)."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class NLayerDiscriminator(nn.Module):
    """One logit per overlapping patch: (B, input_nc, H, W) -> (B, 1, about H/2**n_layers, about W/2**n_layers)."""

    def __init__(self, input_nc: int = 3, ndf: int = 64, n_layers: int = 3, use_actnorm: bool = False) -> None:
        super().__init__()
        self.n_layers = n_layers
        layers: list[nn.Module] = [nn.Conv2d(input_nc, ndf, kernel_size=4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = ndf
        for index in range(1, n_layers + 1):
            width_out = ndf * min(2**index, 8)
            stride = 1 if index == n_layers else 2
            layers += [
                # Batch norm has its own bias; act norm uses the convolution's.
                nn.Conv2d(width, width_out, kernel_size=4, stride=stride, padding=1, bias=use_actnorm),
                ActNorm(width_out) if use_actnorm else nn.BatchNorm2d(width_out),
                nn.LeakyReLU(0.2),
            ]
            width = width_out
        layers.append(nn.Conv2d(width, 1, kernel_size=4, stride=1, padding=1))
        self.main = nn.Sequential(*layers)
        self.apply(_init_weights)

    def forward(self, x: Tensor) -> Tensor:
        # Each strided layer halves the size; the last two convolutions each reduce it by one pixel.
        if min(x.shape[-2:]) // 2**self.n_layers < 3:
            raise UserError(
                f"images of {x.shape[-2]}x{x.shape[-1]} pixels are too small for a discriminator with {self.n_layers} "
                f"strided layers; lower disc_num_layers, or set disc_factor: 0 to train without one"
            )
        return self.main(x)


def hinge_d_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Hinge loss of the discriminator (Lim and Ye 2017), a scalar."""
    return 0.5 * (F.relu(1.0 - logits_real).mean() + F.relu(1.0 + logits_fake).mean())


def vanilla_d_loss(logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """Cross-entropy loss of the discriminator (Goodfellow et al. 2014), a scalar."""
    return 0.5 * (F.softplus(-logits_real).mean() + F.softplus(logits_fake).mean())


DISCRIMINATOR_LOSSES = {"hinge": hinge_d_loss, "vanilla": vanilla_d_loss}
