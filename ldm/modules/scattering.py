"""`Scattering`: features of images from fixed wavelets, of first and second order (Bruna and Mallat 2013).

No number in it comes from data, so that a linear classifier on these features can be trained under differential
privacy with the noise on its few weights only (Tramèr and Boneh 2021, arXiv 2011.11660).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.errors import UserError

#: Half width of a filter, in standard deviations of its Gaussian envelope.
_REACH = 3.0
#: Bandwidth and centre frequency of the finest wavelet, as in the original software of the authors.
_SIGMA, _FREQUENCY = 0.8, 0.75 * math.pi


def morlet(sigma: float, frequency: float, angle: float, slant: float) -> tuple[Tensor, Tensor]:
    """Real and imaginary part (k, k) of a Morlet wavelet of zero mean, oriented along ``angle`` (radians).

    ``sigma``: deviation in pixels along the wave; sigma / ``slant`` across it. ``frequency``: radians a pixel.
    """
    reach = math.ceil(_REACH * sigma / min(slant, 1.0))
    axis = torch.arange(-reach, reach + 1, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    along = math.cos(angle) * x + math.sin(angle) * y
    across = math.cos(angle) * y - math.sin(angle) * x
    envelope = torch.exp(-(along**2 + (slant * across) ** 2) / (2 * sigma**2)) * slant / (2 * math.pi * sigma**2)
    wave = torch.polar(envelope, frequency * along)
    wave = wave - envelope * (wave.sum() / envelope.sum())
    return wave.real, wave.imag


@dataclass(frozen=True)
class Scattering:
    """Moduli of wavelet coefficients, averaged over windows of 2^scales pixels.

    ``size``: height and width of the images, a multiple of 2^scales. For C = 1 + J L + L² J (J - 1) / 2 channels with J
    scales and L angles, images (B, size, size) give (B, C, size / 2^J, size / 2^J).

    >>> Scattering(32)(torch.zeros(1, 32, 32)).shape
    torch.Size([1, 81, 8, 8])
    """

    size: int
    scales: int = 2
    angles: int = 8

    def __post_init__(self) -> None:
        if self.scales < 1 or self.angles < 1 or self.size < 1 or self.size % 2**self.scales:
            raise UserError(
                f"scattering of {self.size} pixels in {self.scales} scales: give a size that {2**self.scales} divides"
            )
        widest = math.ceil(_REACH * _SIGMA * 2 ** (self.scales - 1) / min(1.0, 4 / self.angles))
        if self.size < widest:
            raise UserError(f"scattering of {self.size} pixels in {self.scales} scales: give a size from {widest}")

    @property
    def channels(self) -> int:
        """Number of channels C."""
        return 1 + self.scales * self.angles + self.angles**2 * self.scales * (self.scales - 1) // 2

    @property
    def side(self) -> int:
        """Height and width of the features."""
        return self.size // 2**self.scales

    @cached_property
    def _filters(self) -> list[Tensor]:
        """Weights (2 L, 1, k, k) of each scale: the real parts of all angles, then the imaginary parts."""
        result = []
        for scale in range(self.scales):
            sigma, frequency = _SIGMA * 2**scale, _FREQUENCY / 2**scale
            pairs = [
                morlet(sigma, frequency, math.pi * turn / self.angles, 4 / self.angles) for turn in range(self.angles)
            ]
            result.append(torch.stack([pair[0] for pair in pairs] + [pair[1] for pair in pairs])[:, None].float())
        return result

    @cached_property
    def _window(self) -> Tensor:
        """Weights (1, 1, k, k) of the averaging window."""
        sigma = _SIGMA * 2 ** (self.scales - 1)
        axis = torch.arange(-math.ceil(_REACH * sigma), math.ceil(_REACH * sigma) + 1, dtype=torch.float64)
        row = torch.exp(-(axis**2) / (2 * sigma**2))
        return (torch.outer(row, row) / row.sum() ** 2)[None, None].float()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (B, C, side, side) float32 of images (B, size, size) of any range."""
        if images.ndim != 3 or images.shape[1:] != (self.size, self.size):
            raise UserError(f"scattering of {self.size} pixels: images have shape {tuple(images.shape)}")
        image = images[:, None].float()
        orders: list[list[Tensor]] = [[self._averaged(image, 1)], [], []]
        for scale in range(self.scales):
            first = self._moduli(image, scale, 2**scale)
            orders[1].append(self._averaged(first, 2**scale))
            for coarser in range(scale + 1, self.scales):
                second = self._moduli(first.flatten(0, 1)[:, None], coarser, 2 ** (coarser - scale), 2**scale)
                orders[2].append(self._averaged(second, 2**coarser).view(len(images), -1, self.side, self.side))
        return torch.cat([part for order in orders for part in order], dim=1)

    def _moduli(self, maps: Tensor, scale: int, stride: int, spacing: int = 1) -> Tensor:
        """Moduli (B, L, h / stride, w / stride) of maps (B, 1, h, w) with pixels ``spacing`` image pixels apart."""
        weights = self._filters[scale]
        if spacing > 1:
            middle = weights.shape[-1] // 2
            weights = weights[..., middle % spacing :: spacing, middle % spacing :: spacing] * spacing**2
        both = F.conv2d(F.pad(maps, [weights.shape[-1] // 2] * 4, mode="circular"), weights, stride=stride)
        real, imaginary = both.chunk(2, dim=1)
        return (real.square() + imaginary.square()).sqrt()

    def _averaged(self, maps: Tensor, spacing: int) -> Tensor:
        """Maps (B, c, h, w), averaged and sampled every 2^scales image pixels."""
        weights = self._window
        if spacing > 1:
            middle = weights.shape[-1] // 2
            weights = weights[..., middle % spacing :: spacing, middle % spacing :: spacing]
            weights = weights / weights.sum()
        flat = maps.flatten(0, 1)[:, None]
        flat = F.pad(flat, [weights.shape[-1] // 2] * 4, mode="circular")
        result = F.conv2d(flat, weights, stride=2**self.scales // spacing)
        return result.view(*maps.shape[:2], self.side, self.side)
