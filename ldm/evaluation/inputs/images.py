"""Image conversions that all evaluation shares; images are (N, C, H, W) floats in [-1, 1]."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ldm.errors import UserError

# ITU-R BT.601 luma, the weights PIL uses for convert("L"); a grey image stored in three channels stays as it is.
_LUMA = (0.299, 0.587, 0.114)


def _channels(images: Tensor) -> int:
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"images have shape {tuple(images.shape)}; expected (N, 1 or 3, height, width)")
    return images.shape[1]


def to_rgb(images: Tensor) -> Tensor:
    """(N, 1 or 3, H, W) -> (N, 3, H, W); one channel is repeated."""
    return images.expand(-1, 3, -1, -1) if _channels(images) == 1 else images


def to_grey(images: Tensor) -> Tensor:
    """(N, 1 or 3, H, W) -> (N, 1, H, W) by the BT.601 luma weights."""
    if _channels(images) == 1:
        return images
    return (images * images.new_tensor(_LUMA).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def quantize(images: Tensor) -> Tensor:
    """Round to the 256 levels of an 8-bit image file; the result stays float in [-1, 1]."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1


def resize(images: Tensor, size: int) -> Tensor:
    """Bilinear resize to (size, size), with anti-aliasing when shrinking; images of that size stay unchanged."""
    if images.shape[-2:] == (size, size):
        return images
    smaller = images.shape[-1] > size or images.shape[-2] > size
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=smaller)
