"""Images inside a page, embedded as PNG data."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from markupsafe import Markup
from PIL import Image
from torch import Tensor

from ldm.evaluation.inputs.images import resize
from ldm.samples import grid

#: Longest side of one image in a report, in pixels; larger images are shrunk.
TILE = 128
#: Images up to this side are shown twice as large, with sharp pixels.
SMALL = 48


@dataclass(frozen=True)
class Figure:
    """An image for a template: its data, a text description, a caption, and its size on the page in pixels."""

    data: Markup
    alt: str
    caption: str
    width: int
    height: int
    sharp: bool


def figure(image: Image.Image, alt: str, caption: str = "", scale: int = 1) -> Figure:
    """The image as PNG data, enlarged `scale` times on a page that is wide enough."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    data = Markup("data:image/png;base64,") + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Figure(data, alt, caption, image.width * scale, image.height * scale, sharp=scale > 1)


def sheet(images: Tensor, columns: int) -> Image.Image:
    """Images (N, 1 or 3, H, W) in [-1, 1] on one image, none larger than `TILE`."""
    side = max(images.shape[-2:])
    if side > TILE:
        images = resize(images.float(), TILE)
    return grid(images, columns)


def strip(images: Tensor, alt: str, columns: int = 10, caption: str = "") -> Figure:
    """Images (N, 1 or 3, H, W) in [-1, 1] on one sheet; small ones are enlarged."""
    return figure(sheet(images, columns), alt, caption, scale=2 if max(images.shape[-2:]) <= SMALL else 1)
