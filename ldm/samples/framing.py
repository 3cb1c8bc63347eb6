"""Framing of images to a given size by resizing, padding or cropping, identical for training and evaluation."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ldm.errors import UserError

FRAMINGS = ("resize", "pad", "crop")
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "linear": Image.Resampling.BILINEAR,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def to_size(image: np.ndarray, size: int | None, framing: str = "resize", interpolation: str = "bicubic") -> np.ndarray:
    """Return a uint8 image (H, W[, 3]) as (size, size[, 3]): resized and cropped, padded with black, or cropped.

    "resize" scales the shorter side to ``size`` and crops the centre. It rounds like torchvision's ``Resize(size)``
    and ``CenterCrop(size)``, because published statistics are computed from their pixels.
    """
    height, width = image.shape[:2]
    if size is None or (height, width) == (size, size):
        return image
    if framing == "pad":
        if height > size or width > size:
            raise UserError(f"a {height}x{width} image does not fit size={size} by padding; use framing='resize'")
        top, left = (size - height) // 2, (size - width) // 2
        border = [(top, size - height - top), (left, size - width - left)]
        return np.pad(image, border + [(0, 0)] * (image.ndim - 2))
    if framing == "crop":
        if height < size or width < size:
            raise UserError(f"size={size} cannot be cut from a {height}x{width} image; use framing='resize'")
        return centre(image, size)
    shorter = min(height, width)
    if shorter != size:
        target = (int(size * width / shorter), int(size * height / shorter))
        image = np.asarray(Image.fromarray(image).resize(target, INTERPOLATIONS[interpolation]))
    return centre(image, size)


def centre(image: np.ndarray, size: int) -> np.ndarray:
    """Return the (size, size) centre of an image; odd margins are rounded as in torchvision's CenterCrop."""
    top, left = (round((side - size) / 2.0) for side in image.shape[:2])
    return image[top : top + size, left : left + size]
