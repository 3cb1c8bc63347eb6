"""Grids of images in one image file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ldm.errors import UserError
from ldm.files import write_atomic


def grid(
    images: Tensor, columns: int = 10, labels: Sequence[Any] | Tensor | None = None, padding: int = 2
) -> Image.Image:
    """Arrange images (N, 1 or 3, H, W) in [-1, 1] row by row in a grid, optionally with a caption under each."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise UserError(f"images have shape {tuple(images.shape)}; expected (N >= 1, 1 or 3, height, width)")
    if columns < 1:
        raise UserError(f"{columns} columns asked for; an image grid needs at least 1")
    count, channels, height, width = images.shape
    columns = min(columns, count)
    if labels is not None and len(labels) != count:
        raise UserError(f"{len(labels)} captions for {count} images; expected one an image")
    pixels = (
        ((images.detach().cpu().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    )
    caption = 12 if labels is not None else 0
    cell_height, cell_width = height + caption + padding, width + padding
    rows = math.ceil(count / columns)
    mode = "L" if channels == 1 else "RGB"
    sheet = Image.new(mode, (columns * cell_width + padding, rows * cell_height + padding), 0)
    draw = ImageDraw.Draw(sheet)
    for index, tile in enumerate(pixels):
        left, top = padding + index % columns * cell_width, padding + index // columns * cell_height
        sheet.paste(Image.fromarray(tile[..., 0] if channels == 1 else tile, mode), (left, top))
        if labels is not None:
            text = labels[index].item() if isinstance(labels[index], Tensor) else labels[index]
            draw.text((left, top + height), str(text), fill="white" if mode == "RGB" else 255)
    return sheet


def save_grid(
    images: Tensor, path: str | Path, columns: int = 10, labels: Sequence[Any] | Tensor | None = None
) -> None:
    """Write an image grid (see `grid`) in the format of the file name's suffix (.png, .jpg), atomically."""
    path = Path(path)
    known = Image.registered_extensions()
    if path.suffix.lower() not in known:
        raise UserError(f"{path}: cannot tell an image format from the name; end it in .png")
    sheet = grid(images, columns, labels)
    write_atomic(path, lambda temporary: sheet.save(temporary, format=known[path.suffix.lower()]))
