"""Images of any kind under one name: sample files, folders of image files, and dataset classes."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from ldm.errors import UserError
from ldm.evaluation.inputs.images import resize
from ldm.evaluation.inputs.sources import SAMPLE_SUFFIXES, dataset_batches, open_dataset, parse_settings, takes_size
from ldm.samples import SampleFile, iter_batches

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
Batches = Iterator[tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class ImageSource:
    """Images that can be gone through more than once, a batch at a time, and never all held at once.

    batches(batch_size) yields images (B, 1 or 3, H, W) float32 in [-1, 1] and labels (B,) int64 or None.
    meta: what a sample file says about itself. class_names: names of the labels where a folder gives them.
    """

    name: str
    batches: Callable[[int], Batches]
    meta: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()


def open_images(
    name: str, settings: Sequence[str] = (), *, size: int | None = None, num_workers: int = 0
) -> ImageSource:
    """The images called `name`.

    A sample file (.pt, .npz), a folder (`folder_images`), or a dataset class by its dotted name with `settings`
    (`key:value` words). A folder takes one setting, size:N. `size` goes to a dataset class that takes a size when
    `settings` give none; nothing else is resized unasked.
    Raises UserError for a name that is none of these, and for a statistics file, which holds no images.
    """
    path = Path(name)
    if path.is_dir():
        return folder_images(path, _folder_size(parse_settings(settings), name))
    if path.suffix in SAMPLE_SUFFIXES or os.sep in name or path.exists():
        if settings:
            raise UserError(f"{name} is a file; key:value settings only go with a dataset class")
        if is_statistics_file(path):
            raise UserError(f"{name} holds statistics, not images; name the images themselves")
        return _sample_file(path)
    params = parse_settings(settings)
    if size is not None and "size" not in params and "config" not in params and takes_size(name):
        params["size"] = size
        settings = [*settings, f"size:{size}"]
    dataset = open_dataset(name, params)
    return ImageSource(
        " ".join([name, *settings]),
        lambda batch_size: dataset_batches(dataset, batch_size=batch_size, num_workers=num_workers),
    )


def is_statistics_file(path: str | Path) -> bool:
    """Whether `path` is an `.npz` with `mu` and `sigma`."""
    if Path(path).suffix != ".npz" or not Path(path).is_file():
        return False
    try:
        with np.load(path, allow_pickle=False) as content:
            return {"mu", "sigma"} <= set(content.files)
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile):
        return False


def _sample_file(path: Path) -> ImageSource:
    file = SampleFile.open(path)

    def batches(batch_size: int) -> Batches:
        total = -(-file.count // _checked(batch_size))
        yield from tqdm(iter_batches(path, batch_size), total=total, unit="batch", disable=None)

    return ImageSource(str(path), batches, file.meta or {})


def _folder_size(settings: Mapping[str, Any], name: str) -> int | None:
    unknown = settings.keys() - {"size"}
    size = settings.get("size")
    if unknown or (size is not None and (not isinstance(size, int) or size < 1)):
        raise UserError(f"{name} is a folder; it takes one setting, such as size:32")
    return size


def folder_images(folder: Path, size: int | None = None) -> ImageSource:
    """Image files of a folder in sorted order; subfolders, if there are any, are the classes, in sorted order.

    Grey files stay grey when all are, else everything is colour; transparency is dropped. Images keep their size
    unless `size` asks for (size, size) by the bilinear, anti-aliased rule of `images.resize`, and then the name says
    so. Raises UserError for a folder without images, unreadable files, or images of several sizes without `size`.
    """
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files: list[tuple[Path, int | None]] = [(path, None) for path in _files(folder)]
    if not files:
        files = [(path, label) for label, place in enumerate(classes) for path in _files(place)]
    if not files:
        raise UserError(f"{folder}: no images here ({', '.join(IMAGE_SUFFIXES[:3])} ...), nor in its subfolders")
    grey = all(_mode(path) in ("1", "L", "LA", "I;16") for path, _ in files)

    def batches(batch_size: int) -> Batches:
        for start in tqdm(range(0, len(files), _checked(batch_size)), unit="batch", disable=None):
            part = files[start : start + batch_size]
            images = [_read(path, grey, size) for path, _ in part]
            shapes = {tuple(image.shape[-2:]) for image in images}
            if len(shapes) > 1:
                raise UserError(f"{folder}: images of different sizes ({sorted(shapes)[:2]} ...); give size:N")
            labels = [label for _, label in part if label is not None]
            yield torch.cat(images), torch.tensor(labels) if labels else None

    name = str(folder) if size is None else f"{folder} size:{size} (bilinear, anti-aliased)"
    labelled = files[0][1] is not None
    return ImageSource(name, batches, {}, tuple(place.name for place in classes) if labelled else ())


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _mode(path: Path) -> str:
    try:
        with Image.open(path) as image:
            return image.mode
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path}: not a readable image") from error


def _read(path: Path, grey: bool, size: int | None) -> Tensor:
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L" if grey else "RGB"), np.float32)
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"{path}: not a readable image") from error
    tensor = torch.from_numpy(pixels / 127.5 - 1)
    tensor = tensor[None, None] if grey else tensor.permute(2, 0, 1)[None]
    return tensor if size is None else resize(tensor, size)


def _checked(batch_size: int) -> int:
    if batch_size < 1:
        raise UserError(f"batch size {batch_size} must be at least 1")
    return batch_size
