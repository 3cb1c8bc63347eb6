"""One interface to images from sample files, folders of image files, and dataset classes."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ldm.errors import UserError
from ldm.evaluation.inputs.sources import (
    SAMPLE_SUFFIXES,
    dataset_batches,
    from_training_files,
    open_dataset,
    parse_settings,
    takes_size,
)
from ldm.files import ZIP_DAMAGE
from ldm.samples import SampleFile, class_names_in, iter_batches
from ldm.samples.array_files import NPZ_NAMES
from ldm.samples.framing import to_size
from ldm.samples.image_files import all_problems, read_image
from ldm.samples.image_folder import ImageFolderListing, list_images, read_headers, require_one_size
from ldm.samples.pixel_range import BYTES
from ldm.samples.shards import WHOLE, Shard

Batches = Iterator[tuple[Tensor, Tensor | None]]


class BatchReader(Protocol):
    """Reads images batch by batch: all of them, or the batches of one part of a job."""

    def __call__(self, batch_size: int, shard: Shard = WHOLE) -> Batches: ...


@dataclass(frozen=True)
class ImageSource:
    """Images that can be read more than once, batch by batch, so that memory never holds all of them.

    batches(batch_size) yields images (B, 1 or 3, H, W) float32 in [-1, 1] and labels (B,) int64 or None;
    batches(batch_size, shard) yields only the batches of that part.
    meta: metadata of a sample file. class_names: names of the labels 0, 1, ... where the source has them.
    from_training_files: True for images of a data set's training files, because a score on them is no test score.
    """

    name: str
    batches: BatchReader
    meta: Mapping[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    from_training_files: bool = False


def open_images(
    name: str, settings: Sequence[str] = (), *, size: int | None = None, num_workers: int = 0
) -> ImageSource:
    """The images called `name`.

    A sample file (.pt, .npz), a folder (`folder_images`), or a dataset class by its dotted name with `settings`
    (`key:value` words). A folder takes one setting, size:N. `size` goes to a dataset class that takes a size when
    `settings` give none; other images keep their size.
    Raises UserError for a name that is none of these, and for a statistics file, which holds no images.
    """
    path = Path(name)
    if path.is_dir():
        return folder_images(path, _folder_size(parse_settings(settings), name))
    if path.suffix in SAMPLE_SUFFIXES or os.sep in name or path.exists():
        if settings:
            raise UserError(f"{name} is a file; key:value settings only go with a dataset class")
        if is_statistics_file(path) and not holds_images(path):
            raise UserError(f"{name} holds statistics, not images; name the images themselves")
        return _sample_file(path)
    params = parse_settings(settings)
    if size is not None and "size" not in params and "config" not in params and takes_size(name):
        params["size"] = size
        settings = [*settings, f"size:{size}"]
    dataset = open_dataset(name, params)
    return ImageSource(
        " ".join([name, *settings]),
        lambda batch_size, shard=WHOLE: dataset_batches(
            dataset, batch_size=batch_size, num_workers=num_workers, shard=shard
        ),
        class_names=tuple(getattr(dataset, "class_names", None) or ()),
        from_training_files=from_training_files(dataset),
    )


def is_statistics_file(path: str | Path) -> bool:
    """Whether `path` is an `.npz` with `mu` and `sigma`."""
    return {"mu.npy", "sigma.npy"} <= _members(path)


def holds_images(path: str | Path) -> bool:
    """Whether `path` is an `.npz` with images; guided-diffusion's reference files hold statistics as well."""
    return any(f"{images}.npy" in _members(path) for images, _ in NPZ_NAMES)


def _members(path: str | Path) -> set[str]:
    if Path(path).suffix != ".npz" or not Path(path).is_file():
        return set()
    try:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist())
    except (*ZIP_DAMAGE, OSError):
        return set()


def _sample_file(path: Path) -> ImageSource:
    file = SampleFile.open(path)

    def batches(batch_size: int, shard: Shard = WHOLE) -> Batches:
        part = shard.part(-(-file.count // _checked(batch_size)))
        chosen = islice(iter_batches(path, batch_size), part.start, part.stop)
        yield from tqdm(chosen, total=len(part), unit="batch", disable=None)

    meta = file.meta or {}
    return ImageSource(str(path), batches, meta, class_names_in(meta, path))


def _folder_size(settings: Mapping[str, Any], name: str) -> int | None:
    unknown = settings.keys() - {"size"}
    size = settings.get("size")
    if unknown or (size is not None and (not isinstance(size, int) or size < 1)):
        raise UserError(f"{name} is a folder; it takes one setting, such as size:32")
    return size


def folder_images(folder: Path, size: int | None = None) -> ImageSource:
    """Image files of a folder; subfolders, if there are any, are the classes. Training reads folders the same way.

    `ldm.samples.image_folder` selects the files, `ldm.samples.image_files` decodes them. Images are grey if all files
    are grey, else colour. `size` resizes the shorter side and crops the centre to (size, size), as a training set
    does, and the source's name then shows it; without `size` images keep their size.
    Raises UserError for a folder without images, for unreadable files (one list of all of them), and for images of
    several sizes without `size`.
    """
    listing = list_images(folder)
    headers = read_headers(listing.paths)
    if size is None:
        require_one_size(folder, headers, "give size:N")
    grey = all(header.is_grey for header in headers)
    labels = None if listing.labels is None else torch.from_numpy(listing.labels)

    def batches(batch_size: int, shard: Shard = WHOLE) -> Batches:
        chosen = shard.part(-(-len(listing.paths) // _checked(batch_size)))
        for start in tqdm([number * batch_size for number in chosen], unit="batch", disable=None):
            part = listing.paths[start : start + batch_size]
            images = torch.stack([_to_tensor(to_size(_read(path, listing), size), grey) for path in part])
            yield images, None if labels is None else labels[start : start + batch_size]

    name = str(folder) if size is None else f"{folder} size:{size} (shorter side bicubic, middle cut out)"
    return ImageSource(name, batches, {}, tuple(listing.class_names))


def _read(path: Path, listing: ImageFolderListing) -> np.ndarray:
    try:
        return read_image(path)
    except UserError as error:
        raise all_problems(error, listing.paths) from None


def _to_tensor(image: np.ndarray, grey: bool) -> Tensor:
    """A uint8 image (H, W[, 3]) as float32 (1 or 3, H, W) in [-1, 1]."""
    pixels = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    pixels = np.repeat(pixels, 3, axis=0) if len(pixels) == 1 and not grey else pixels
    return BYTES.to_signed(torch.from_numpy(np.array(pixels)))


def _checked(batch_size: int) -> int:
    if batch_size < 1:
        raise UserError(f"batch size {batch_size} must be at least 1")
    return batch_size
