"""The sample-file format that every verb reads and writes: pictures, their labels and how they were made."""

from __future__ import annotations

import logging
import math
import pickle
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ldm.checkpoint import write_atomic
from ldm.errors import UserError

logger = logging.getLogger(__name__)

IMAGE_KEY, LABEL_KEY, META_KEY = "image", "class_label", "meta"

# Decoders overshoot [-1, 1] a little and older samplers saved what came out. More than this share of values beyond
# this bound is another scale (0-255, standardised), which clamping would silently turn into black and white.
OVERSHOOT_BOUND, OVERSHOOT_SHARE = 1.5, 0.01


@dataclass(frozen=True)
class SampleSet:
    """Pictures with optional labels, as they lie on disk.

    images: (N, C, H, W) float32 on the CPU, clamped to [-1, 1]; C is 1 or 3.
    labels: (N,) int64 or None. meta: plain values that say how the pictures were made (config, checkpoint digest,
    seed, sampler, steps, scale, ...). Any floating type and device is accepted and brought to this form.
    Raises UserError for NaN or infinite pixels, a wrong shape, or labels that do not match the pictures.
    """

    images: Tensor
    labels: Tensor | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        images = self.images.detach().cpu()
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise UserError(f"pictures have shape {tuple(images.shape)}; expected (N, 1 or 3, height, width)")
        if not images.is_floating_point():
            raise UserError(f"pictures have type {images.dtype}; expected floats in [-1, 1]")
        bad = ~torch.isfinite(images).flatten(1).all(dim=1)
        if bad.any():
            raise UserError(f"{int(bad.sum())} of {len(images)} pictures hold NaN or infinite values")
        object.__setattr__(self, "images", images.float().clamp(-1, 1).contiguous())
        if self.labels is not None:
            object.__setattr__(self, "labels", _checked_labels(self.labels.detach().cpu(), len(images)))
        _check_plain(self.meta, META_KEY)

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, index: Tensor) -> SampleSet:
        """The pictures at `index` (integers or a mask, (K,)), with their labels and the same meta."""
        return SampleSet(self.images[index], None if self.labels is None else self.labels[index], dict(self.meta))

    def save(self, path: str | Path) -> None:
        """Write a `.pt` dict with keys `image`, `class_label` (when there are labels) and `meta`, atomically."""
        content: dict[str, Any] = {IMAGE_KEY: self.images, META_KEY: dict(self.meta)}
        if self.labels is not None:
            content[LABEL_KEY] = self.labels
        write_atomic(Path(path), lambda temporary: torch.save(content, temporary))

    @classmethod
    def load(cls, path: str | Path, *, need_labels: bool = False) -> SampleSet:
        """Read a sample file of this or an older form.

        `.pt`: dict of `image` and optional `class_label`; images may be (N, B, C, H, W) as one old script saved them,
        (N, H, W, C), (N, H, W), uint8, or floats in [0, 1] (told by the missing `meta` and no negative value; warned).
        `.npz`: `x` (N, H, W, C) and optional `y`. Nothing in the file is executed.
        Raises UserError, one line naming the file, when it is none of these or `need_labels` and it has none.
        """
        path = Path(path)
        raw_images, raw_labels, meta = _read_npz(path) if path.suffix == ".npz" else _read_pt(path)
        try:
            images = _to_signed_unit(_to_nchw(raw_images), old_form=meta is None, source=str(path))
            labels = None if raw_labels is None else raw_labels.flatten()
            if labels is None and need_labels:
                raise UserError(f"no labels (key {LABEL_KEY!r}); sample from a class-conditional model to get them")
            return cls(images, labels, meta or {})
        except UserError as error:
            raise UserError(f"{path}: {error}") from error


def _read_pt(path: Path) -> tuple[Tensor, Tensor | None, dict[str, Any] | None]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: not a readable sample file; expected a torch file that holds only tensors and plain values"
        ) from error
    if not isinstance(content, dict) or IMAGE_KEY not in content:
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise UserError(
            f"{path}: no {IMAGE_KEY!r} in this file (it holds {found}); expected a sample file with "
            f"{IMAGE_KEY!r} and {LABEL_KEY!r}"
        )
    meta = content.get(META_KEY)
    if meta is not None and not isinstance(meta, dict):
        raise UserError(f"{path}: {META_KEY!r} is a {type(meta).__name__}; expected a dict of plain values")
    return _tensor(content[IMAGE_KEY], path, IMAGE_KEY), _labels_or_none(content.get(LABEL_KEY), path, LABEL_KEY), meta


def _read_npz(path: Path) -> tuple[Tensor, Tensor | None, None]:
    try:
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not a readable .npz file of plain arrays") from error
    if "x" not in arrays:
        raise UserError(f"{path}: no 'x' in this file (it holds {sorted(arrays)}); expected 'x' (N, H, W, C) and 'y'")
    return _tensor(arrays["x"], path, "x"), _labels_or_none(arrays.get("y"), path, "y"), None


def _tensor(value: Any, path: Path, key: str) -> Tensor:
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: {key!r} is a {type(value).__name__}; expected a tensor") from error


def _labels_or_none(value: Any, path: Path, key: str) -> Tensor | None:
    return None if value is None else _tensor(value, path, key)


def _to_nchw(images: Tensor) -> Tensor:
    if images.ndim == 5:
        images = images.flatten(0, 1)
    if images.ndim == 3:
        images = images.unsqueeze(1)
    if images.ndim == 4 and images.shape[1] not in (1, 3) and images.shape[3] in (1, 3):
        images = images.permute(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise UserError(f"pictures have shape {tuple(images.shape)}; expected (N, 1 or 3, height, width)")
    if not images.numel():
        raise UserError("holds no pictures")
    return images


def _to_signed_unit(images: Tensor, *, old_form: bool, source: str) -> Tensor:
    """Bring pictures of any accepted scale to [-1, 1]; refuse scales that cannot be told apart from a mistake."""
    if images.dtype == torch.uint8:
        return images.float() / 127.5 - 1
    if not images.is_floating_point():
        raise UserError(f"pictures have type {images.dtype}; expected floats in [-1, 1] or uint8")
    images = images.float()
    if not torch.isfinite(images).all():
        return images  # SampleSet counts and names them
    low, high = float(images.min()), float(images.max())
    if float((images.abs() > OVERSHOOT_BOUND).float().mean()) > OVERSHOOT_SHARE:
        raise UserError(f"pixel values lie in [{low:.3g}, {high:.3g}]; expected [-1, 1], [0, 1] or uint8")
    if old_form and low >= 0:
        logger.warning("%s: no negative pixel and no %r: read as an older file with pixels in [0, 1]", source, META_KEY)
        return images * 2 - 1
    return images


def _checked_labels(labels: Tensor, count: int) -> Tensor:
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(f"labels have type {labels.dtype}; expected whole numbers (int64)")
    if labels.shape != (count,):
        raise UserError(f"{labels.numel()} labels for {count} pictures; expected one label a picture")
    if count and int(labels.min()) < 0:
        raise UserError(f"labels go down to {int(labels.min())}; expected class numbers from 0")
    return labels.to(torch.int64).contiguous()


def _check_plain(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_plain(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_plain(inner, where)
    elif not isinstance(value, str | int | float | bool | None):
        raise UserError(f"{where} is a {type(value).__name__}; sample files carry plain values only")


def grid(
    images: Tensor, columns: int = 10, labels: Sequence[Any] | Tensor | None = None, padding: int = 2
) -> Image.Image:
    """Lay pictures (N, 1 or 3, H, W) in [-1, 1] row by row on one sheet, optionally with a caption under each."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise UserError(f"pictures have shape {tuple(images.shape)}; expected (N >= 1, 1 or 3, height, width)")
    if columns < 1:
        raise UserError(f"{columns} columns asked for; a picture grid needs at least 1")
    count, channels, height, width = images.shape
    columns = min(columns, count)
    if labels is not None and len(labels) != count:
        raise UserError(f"{len(labels)} captions for {count} pictures; expected one a picture")
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
    """Write a picture grid (see `grid`) as the image format that the file name ends in (.png, .jpg), atomically."""
    path = Path(path)
    known = Image.registered_extensions()
    if path.suffix.lower() not in known:
        raise UserError(f"{path}: cannot tell a picture format from the name; end it in .png")
    sheet = grid(images, columns, labels)
    write_atomic(path, lambda temporary: sheet.save(temporary, format=known[path.suffix.lower()]))
