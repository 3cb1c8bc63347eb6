"""A data set stored in one file of tensors, and a writer of such files for any data set."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ldm.config import instantiate_from_config
from ldm.data.base import RecordDataset, RecordOptions, content_digests, digest, to_item, to_path
from ldm.errors import UserError
from ldm.files import verify_zip, write_atomic
from ldm.samples import CLASS_NAMES_KEY, class_names_in
from ldm.samples.array_files import NpzArchive, is_mapped, load_torch, npz_names, require_stored
from ldm.samples.framing import to_size
from ldm.samples.pixel_range import BYTES, PixelRange, find_range, require_levels

IMAGE_KEY, LABEL_KEY, METADATA_KEY = "image", "class_label", "metadata"
RANGE_KEY = "value_range"
SCAN_VALUES = 2**22  # values examined at a time when the range is determined


class InMemoryDataset(RecordDataset):
    """Images and labels from a file written by `cache_dataset` (scripts/cache_data.py) or by a sampler.

    ``.pt``: a dict of ``image`` (N, H, W, C), uint8 or floats, whose range `ldm.samples.pixel_range` finds; optional
    ``class_label`` (N,), ``class_names`` (a list), and any other tensors (N, ...), which become fields of the items.
    Images of different sizes are concatenated in a flat ``image``, and row i of ``metadata``, (N, 2 + d), is the
    offset, the number of values and the shape of image i. Sample files (N, C, H, W) are read as well. ``.npz``: ``x``
    (N, H, W, C) and optional ``y``, or ``arr_0`` and ``arr_1``. No code in a file is executed.

    Args:
        path: the file; a ``.pt`` file is memory-mapped, so that loader processes share it.
        transform: a function from an image (float32 (H, W, C) in [-1, 1]) to the item's image, or its
            ``{target, params}``; the items then count as random.
        size, flip_p, options: see `ldm.data.base.RecordDataset`; ``channels`` None keeps those of the file. Floats
            of another size are rounded to 8 bits before they are resized.

    Raises:
        UserError: for a file that is missing or of another format, and, on reading, for an image of another range.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        transform: Callable[[np.ndarray], Any] | Mapping[str, Any] | None = None,
        size: int | None = None,
        flip_p: float = 0.0,
        **options: Unpack[RecordOptions],
    ):
        self.path = to_path(path)
        content = read_npz(self.path) if self.path.suffix == ".npz" else read_pt(self.path)
        self._image, self._rows = content.pop(IMAGE_KEY), content.pop(METADATA_KEY, None)
        is_sample_file = "meta" in content
        self._channels_first = self._rows is None and is_channels_first(self._image, is_sample_file)
        self.class_names = named_classes(content, self.path)
        labels = content.pop(LABEL_KEY, None)
        count = len(self._image) if self._rows is None else len(self._rows)
        for name, value in [(LABEL_KEY, labels), *content.items()]:
            if isinstance(value, Tensor) and value.shape[:1] != (count,):
                raise UserError(f"{self.path}: {name!r} has {len(value) if value.ndim else 1} rows, not {count}")
        self._labels = None if labels is None else labels.reshape(count).to(torch.int64).numpy()
        self._others = {name: value for name, value in content.items() if isinstance(value, Tensor)}
        self._count = count
        self._range = self._found_range(is_sample_file or RANGE_KEY in content)
        self.default_channels = 1 if self._stored(0).ndim == 2 or self._stored(0).shape[2] == 1 else 3
        super().__init__(size, flip_p, **options)
        self.transform = instantiate_from_config(transform) if isinstance(transform, Mapping) else transform
        if self.transform is not None and not callable(self.transform):
            raise UserError(f"InMemoryDataset: transform={transform!r} cannot be called; give a function or a target")
        sizes = set() if self._rows is None else {tuple(row[2:4]) for row in self._rows.tolist()}
        if self.size is None and self.transform is None and len(sizes) > 1:
            raise UserError(f"{self.path}: images of {len(sizes)} different sizes; give size=32 (or the size you need)")
        self.num_classes = None if self._labels is None else int(self._labels.max()) + 1
        self.source, self.rows = str(self.path), np.arange(count)

    def __len__(self) -> int:
        return self._count

    def label(self, index: int) -> int:
        if self._labels is None:
            raise UserError(f"{self.path}: holds no {LABEL_KEY!r}")
        return int(self._labels[index])

    def _found_range(self, is_signed: bool) -> PixelRange:
        """The range of the file's pixels, found in one pass over the file. Raises UserError."""
        each = max(1, self._image[0].numel()) if self._image.ndim > 1 else 1
        whole = self._image if self._image.ndim > 1 else self._image[:, None]
        blocks = whole.split(max(1, SCAN_VALUES // each))
        if self._image.dtype == torch.uint8:
            require_levels(blocks, str(self.path))
            return BYTES
        return find_range(blocks, str(self.path), is_signed=is_signed)

    def _stored(self, index: int) -> Tensor:
        """The stored image ``index``: uint8 or floats, (H, W) or (H, W, C)."""
        if self._rows is not None:
            offset, numel, *shape = self._rows[index].tolist()
            image = self._image[offset : offset + numel].reshape(shape)
        else:
            image = self._image[index]
        return image.permute(1, 2, 0) if self._channels_first else image

    def pixels(self, index: int) -> np.ndarray:
        """Return image ``index`` as uint8; floats are rounded to the nearest of 256 levels."""
        stored = self._stored(index)
        if stored.dtype == torch.uint8:
            image = stored.numpy()
        else:
            image = np.clip(np.rint((self._range.to_signed(stored).numpy() + 1) * 127.5), 0, 255).astype(np.uint8)
        return image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image

    def annotations(self, index: int) -> dict[str, Any]:
        labels = {} if self._labels is None else {LABEL_KEY: self.label(index)}
        return {**labels, **{name: value[index] for name, value in self._others.items()}}

    @property
    def labels(self) -> np.ndarray | None:
        return None if self._labels is None else self._labels.copy()

    @property
    def deterministic(self) -> bool:
        return super().deterministic and self.transform is None

    def source_digest(self) -> str:
        return digest(content_digests([self.path]))

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = self._checked(index)
        stored = self._stored(index)
        stored = stored[:, :, None] if stored.ndim == 2 else stored
        fits = self.size is None or stored.shape[:2] == (self.size, self.size)
        if stored.dtype != torch.uint8 and fits and stored.shape[2] == self.channels:
            item = self._range.to_signed(stored).numpy()
        else:
            item = to_item(to_size(self.pixels(index), self.size, self.framing, self.interpolation), self.channels)
        if self.flip_p > 0 and self._draws.uniform(index)[0] < self.flip_p:
            item = item[:, ::-1].copy()
        if self.transform is not None:
            item = self.transform(item)
        return {IMAGE_KEY: item, **self.annotations(index)}


def read_pt(path: Path) -> dict[str, Any]:
    """Return the memory-mapped content of a ``.pt`` file, which must contain ``image``. Raises UserError."""
    content = _read(path, load_torch)
    if is_mapped(path):
        verify_zip(path, "copy it again, or write it again")
    if not isinstance(content, dict) or not isinstance(content.get(IMAGE_KEY), Tensor):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path}: no tensor {IMAGE_KEY!r} in this file (it holds {found})")
    return checked(dict(content), path)


def read_npz(path: Path) -> dict[str, Any]:
    """Return the images and labels of a ``.npz`` file as ``image`` and ``class_label``. Raises UserError."""
    archive = _read(path, NpzArchive)
    try:
        names = zip((IMAGE_KEY, LABEL_KEY), npz_names(archive), strict=True)
        return checked({key: torch.from_numpy(archive.array(name)) for key, name in names if name is not None}, path)
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    except TypeError as error:
        raise UserError(f"{path}: {error}") from None


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; scripts/cache_data.py writes one from a data set") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def named_classes(content: dict[str, Any], path: Path) -> list[str]:
    """Remove the class names from a file's content and return them, [] without. Raises UserError for other values."""
    meta = content.get("meta")
    own = {CLASS_NAMES_KEY: content.pop(CLASS_NAMES_KEY, None)}
    return list(class_names_in(own, path) or class_names_in(meta if isinstance(meta, Mapping) else {}, path))


def checked(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a file's content after checking the form of its images. Raises UserError."""
    image, rows, labels = content[IMAGE_KEY], content.get(METADATA_KEY), content.get(LABEL_KEY)
    require_stored(image, f"{path}: {IMAGE_KEY}")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise UserError(f"{path}: images have type {image.dtype}; expected floats in [-1, 1] or uint8")
    if rows is not None:
        rows = content[METADATA_KEY] = torch.as_tensor(rows)
        whole = rows.ndim == 2 and rows.shape[1] in (4, 5) and not rows.is_floating_point() and image.ndim == 1
        if not whole or not all(0 <= o <= o + n <= len(image) and n == prod(s) for o, n, *s in rows.tolist()):
            raise UserError(f"{path}: {METADATA_KEY!r} does not fit; expected offset, numel, shape")
        if not len(rows):
            raise UserError(f"{path}: holds no images")
    elif image.ndim not in (3, 4) or not image.numel():
        raise UserError(f"{path}: images have shape {tuple(image.shape)}; expected (N, height, width, 1 or 3)")
    if labels is not None and (not isinstance(labels, Tensor) or labels.is_floating_point() or not labels.numel()):
        raise UserError(f"{path}: {LABEL_KEY!r} holds no whole numbers; write class numbers from 0")
    if labels is not None and int(labels.min()) < 0:
        raise UserError(f"{path}: {LABEL_KEY!r} goes down to {int(labels.min())}; write class numbers from 0")
    return content


def is_channels_first(image: Tensor, is_sample_file: bool) -> bool:
    """Whether images are (N, C, H, W), as always in a sample file. Raises UserError when no axis can be channels."""
    if image.ndim == 3:
        return False
    first, last = image.shape[1] in (1, 3), image.shape[3] in (1, 3)
    if not first and not last:
        raise UserError(f"images have shape {tuple(image.shape)}; expected (N, height, width, 1 or 3)")
    return first and (is_sample_file or not last)


def cache_dataset(
    dataset: Dataset[dict[str, Any]],
    output: str | os.PathLike[str],
    *,
    batch_size: int = 256,
    num_workers: int = 0,
    as_bytes: bool = False,
    progress: bool = True,
) -> int:
    """Write the items of a data set into one ``.pt`` file that `InMemoryDataset` reads; returns their number.

    Numeric fields are stacked; text fields are dropped. Images of different sizes are flattened, with ``metadata``.
    ``as_bytes`` stores uint8, a quarter of the size, when every value is one of the 256 levels.
    Raises UserError for an empty data set, items without ``image``, and values between the levels with ``as_bytes``.
    """
    if batch_size < 1 or num_workers < 0:
        raise UserError(f"batch size {batch_size} must be at least 1 and workers {num_workers} at least 0")
    if not len(dataset):  # type: ignore[arg-type]
        raise UserError("the data set is empty; nothing was written")
    images: list[Tensor] = []
    others: dict[str, list[Any]] = {}
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=list)
    for items in tqdm(loader, desc="caching", unit="batch", disable=not progress):
        for item in items:
            if not isinstance(item, Mapping) or IMAGE_KEY not in item:
                raise UserError(f"item {len(images)} of the data set has no {IMAGE_KEY!r}; only images are cached")
            images.append(stored_form(torch.as_tensor(np.asarray(item[IMAGE_KEY])), as_bytes, len(images)))
            for name, value in item.items():
                if name != IMAGE_KEY and not isinstance(value, str):
                    others.setdefault(name, []).append(torch.as_tensor(value))
    content: dict[str, Any] = {**laid_out(images), **{name: torch.stack(values) for name, values in others.items()}}
    content[RANGE_KEY] = [-1.0, 1.0]  # range of float images, so that readers need not guess it
    if names := list(getattr(dataset, "class_names", None) or ()):
        content[CLASS_NAMES_KEY] = names
    write_atomic(Path(output), lambda temporary: torch.save(content, temporary))
    return len(images)


def stored_form(image: Tensor, as_bytes: bool, number: int) -> Tensor:
    """An image in [-1, 1], or as uint8 with ``as_bytes``. Raises UserError when uint8 would lose precision."""
    if not as_bytes or image.dtype == torch.uint8:
        return image
    levels = (image + 1) * 127.5
    if not torch.allclose(levels, levels.round(), rtol=0, atol=1e-3) or levels.min() < -0.5 or levels.max() > 255.5:
        raise UserError(f"image {number} has values between the 256 levels; store floats, without --uint8")
    return levels.round().to(torch.uint8)


def laid_out(images: list[Tensor]) -> dict[str, Tensor]:
    """Images stacked, or concatenated with their offsets, lengths and shapes when the shapes differ."""
    if len({image.shape for image in images}) == 1:
        whole = torch.empty(len(images), *images[0].shape, dtype=images[0].dtype)
        for number in range(len(images)):
            whole[number] = images[number]
            images[number] = whole[number]  # frees the original image, so that two full copies never exist
        return {IMAGE_KEY: whole}
    numels = [image.numel() for image in images]
    offsets = np.cumsum([0, *numels[:-1]]).tolist()
    rows = [[offset, numel, *image.shape] for offset, numel, image in zip(offsets, numels, images, strict=True)]
    return {IMAGE_KEY: torch.cat([image.flatten() for image in images]), METADATA_KEY: torch.tensor(rows)}
