"""Random changes of training images, each image of a batch on its own; (N, C, H, W) in, the same shape out.

They draw from torch's global generator of the images' device; the training loop fixes its seed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_SHIFT, MAX_ROTATION = 2 / 32, 0.17  # of the image's size, radians (about 10 degrees)
WIDE_ROTATION, MAX_GROWTH, MAX_SHEAR = 0.3, 0.2, 0.3
CROP_PADDING = 4
NOISE = 0.15


def jitter(images: Tensor) -> Tensor:
    """Rotate by up to 10 degrees and shift by up to 1/16 of the image; new pixels take the image's edge value."""
    angle = _uniform(images, MAX_ROTATION)
    return _moved(images, angle.cos(), -angle.sin(), angle.sin(), angle.cos())


def affine(images: Tensor) -> Tensor:
    """Rotate by up to 17 degrees, shear by up to 0.3, scale each side by up to 20 percent, and shift as `jitter` does.

    For digits and letters: few samples are as slanted, narrow or large as some real ones.
    """
    angle, shear = _uniform(images, WIDE_ROTATION), _uniform(images, MAX_SHEAR)
    width, height = 1 + _uniform(images, MAX_GROWTH), 1 + _uniform(images, MAX_GROWTH)
    return _moved(images, width * angle.cos(), shear - angle.sin(), angle.sin(), height * angle.cos())


def _uniform(images: Tensor, limit: float) -> Tensor:
    """One number an image, (N,), between -limit and limit."""
    return (torch.rand(len(images), device=images.device) * 2 - 1) * limit


def _moved(images: Tensor, xx: Tensor, xy: Tensor, yx: Tensor, yy: Tensor) -> Tensor:
    """Images under linear maps with the given entries (N,), and random shifts of up to `MAX_SHIFT`."""
    shift = (
        (torch.rand(len(images), 2, device=images.device) * 2 - 1) * 2 * MAX_SHIFT
    )  # grid units: the image is 2 wide
    theta = torch.stack([xx, xy, shift[:, 0], yx, yy, shift[:, 1]], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def flip(images: Tensor) -> Tensor:
    """Mirror half of the images left to right."""
    mirrored = torch.rand(len(images), device=images.device) < 0.5
    return torch.where(mirrored.view(-1, 1, 1, 1), images.flip(-1), images)


def crop(images: Tensor, padding: int = CROP_PADDING) -> Tensor:
    """Pad by reflection and crop to the original size at a random position."""
    count, channels, height, width = images.shape
    padded = F.pad(images, [padding] * 4, mode="reflect")
    top, left = torch.randint(0, 2 * padding + 1, (2, count, 1), device=images.device)
    rows = (top + torch.arange(height, device=images.device)).view(count, 1, height, 1)
    columns = (left + torch.arange(width, device=images.device)).view(count, 1, 1, width)
    image = torch.arange(count, device=images.device).view(count, 1, 1, 1)
    channel = torch.arange(channels, device=images.device).view(1, channels, 1, 1)
    return padded[image, channel, rows, columns]


def noise(images: Tensor) -> Tensor:
    """Add Gaussian noise of standard deviation 0.15 to images in [-1, 1].

    Generated images lack the finest detail of real ones; with noise a classifier relies on it less.
    """
    return images + NOISE * torch.randn_like(images)


AUGMENTATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "jitter": jitter,
    "affine": affine,
    "flip": flip,
    "crop": crop,
    "noise": noise,
}
