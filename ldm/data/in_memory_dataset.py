"""A data set from one file of tensors, and the writing of that file from any data set."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ldm.config import instantiate_from_config
from ldm.data.base import RecordDataset, digest, file_stamp, to_item, to_size
from ldm.errors import UserError
from ldm.files import write_atomic

IMAGE_KEY, LABEL_KEY, METADATA_KEY = "image", "class_label", "metadata"


class InMemoryDataset(RecordDataset):
    """Images and labels from a file that `cache_dataset` (scripts/cache_data.py) or a sampler has written.

    ``.pt``: a dict of ``image`` (N, H, W, C), floats in [-1, 1] or uint8, optional ``class_label`` (N,) and any other
    tensors (N, ...), which items carry too. Images of different sizes lie one after the other in a flat ``image``,
    and row i of ``metadata``, (N, 2 + d), is the offset, the number of values and the shape of image i. Sample files
    (N, C, H, W) are read as well. ``.npz``: ``x`` (N, H, W, C) and optional ``y``. Nothing in a file is run.

    Args:
        path: the file; a ``.pt`` is mapped, so that loader processes share it.
        transform: a function of an image (float32 (H, W, C) in [-1, 1]) that gives the item's image, or its
            ``{target, params}``; items then count as random.
        size, flip_p, channels, framing, interpolation, config: see `ldm.data.base.RecordDataset`; ``channels`` None
            keeps those of the file. Floats of another size are rounded to 8 bits before they are resized.

    Raises:
        UserError: for a file that is missing or of another form, and (when it is read) an image of another scale.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        transform: Callable[[np.ndarray], Any] | Mapping | None = None,
        size: int | None = None,
        flip_p: float = 0.0,
        *,
        channels: int | None = None,
        framing: str | None = None,
        interpolation: str | None = None,
        config: Mapping | None = None,
    ):
        self.path = Path(os.path.expandvars(path)).expanduser()
        content = read_npz(self.path) if self.path.suffix == ".npz" else read_pt(self.path)
        self._image, self._rows = content.pop(IMAGE_KEY), content.pop(METADATA_KEY, None)
        self._channels_first = self._rows is None and is_channels_first(self._image, "meta" in content)
        labels = content.pop(LABEL_KEY, None)
        count = len(self._image) if self._rows is None else len(self._rows)
        for name, value in [(LABEL_KEY, labels), *content.items()]:
            if isinstance(value, Tensor) and value.shape[:1] != (count,):
                raise UserError(f"{self.path}: {name!r} has {len(value) if value.ndim else 1} rows, not {count}")
        self._labels = None if labels is None else labels.reshape(count).to(torch.int64).numpy()
        self._others = {name: value for name, value in content.items() if isinstance(value, Tensor)}
        self._count = count
        if channels is None:
            channels = 1 if self._stored(0).ndim == 2 or self._stored(0).shape[2] == 1 else 3
        super().__init__(size, flip_p, channels=channels, framing=framing, interpolation=interpolation, config=config)
        self.transform = instantiate_from_config(transform) if isinstance(transform, Mapping) else transform
        if self.transform is not None and not callable(self.transform):
            raise UserError(f"InMemoryDataset: transform={transform!r} cannot be called; give a function or a target")
        self.num_classes = None if self._labels is None else int(self._labels.max()) + 1
        self.source, self.rows = str(self.path), np.arange(count)

    def __len__(self) -> int:
        return self._count

    def label(self, index: int) -> int:
        if self._labels is None:
            raise UserError(f"{self.path}: holds no {LABEL_KEY!r}")
        return int(self._labels[index])

    def _stored(self, index: int) -> np.ndarray:
        """Image ``index`` as it is stored: uint8 or floats, (H, W) or (H, W, C)."""
        if self._rows is not None:
            offset, numel, *shape = self._rows[index].tolist()
            image = self._image[offset : offset + numel].reshape(shape)
        else:
            image = self._image[index]
        return (image.permute(1, 2, 0) if self._channels_first else image).numpy()

    def pixels(self, index: int) -> np.ndarray:
        """Return image ``index`` as uint8; floats are rounded to the nearest of 256 levels."""
        image = self._stored(index)
        if image.dtype != np.uint8:
            image = np.clip(np.rint((self._checked_range(image, index) + 1) * 127.5), 0, 255).astype(np.uint8)
        return image[:, :, 0] if image.ndim == 3 and image.shape[2] == 1 else image

    def annotations(self, index: int) -> dict:
        labels = {} if self._labels is None else {LABEL_KEY: self.label(index)}
        return {**labels, **{name: value[index] for name, value in self._others.items()}}

    @property
    def labels(self) -> np.ndarray | None:
        return None if self._labels is None else self._labels.copy()

    @property
    def deterministic(self) -> bool:
        return super().deterministic and self.transform is None

    def source_digest(self) -> str:
        return digest(file_stamp(self.path))

    def __getitem__(self, index: int) -> dict:
        index = self._checked(index)
        image = self._stored(index)
        image = image[:, :, None] if image.ndim == 2 else image
        fits = self.size is None or image.shape[:2] == (self.size, self.size)
        if image.dtype != np.uint8 and fits and image.shape[2] == self.channels:
            item = self._checked_range(image, index).astype(np.float32)
        else:
            item = to_item(to_size(self.pixels(index), self.size, self.framing, self.interpolation), self.channels)
        if self.flip_p > 0 and self._draws.uniform(index)[0] < self.flip_p:
            item = item[:, ::-1].copy()
        if self.transform is not None:
            item = self.transform(item)
        return {IMAGE_KEY: item, **self.annotations(index)}

    def _checked_range(self, image: np.ndarray, index: int) -> np.ndarray:
        if not np.abs(image).max() <= 1.001:  # NaN fails as well
            low, high = float(image.min()), float(image.max())
            raise UserError(f"{self.path}: image {index} has values from {low:.3g} to {high:.3g}; expected [-1, 1]")
        return image


def read_pt(path: Path) -> dict[str, Any]:
    """Return the content of a ``.pt`` file, mapped, with ``image`` among it. Raises UserError."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such file; scripts/cache_data.py writes one from a data set")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception:  # bytes that are no such file make the reader fail in any way
        raise UserError(f"{path}: not a torch file that holds only tensors and plain values") from None
    if not isinstance(content, dict) or not isinstance(content.get(IMAGE_KEY), Tensor):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path}: no tensor {IMAGE_KEY!r} in this file (it holds {found})")
    return checked(dict(content), path)


def read_npz(path: Path) -> dict[str, Any]:
    """Return ``x`` and ``y`` of a ``.npz`` file as ``image`` and ``class_label``. Raises UserError."""
    try:
        with np.load(path, allow_pickle=False) as content:
            found = {name: torch.from_numpy(content[name]) for name in ("x", "y") if name in content.files}
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; scripts/cache_data.py writes one from a data set") from None
    except Exception:
        raise UserError(f"{path}: not a readable .npz file of plain arrays") from None
    if "x" not in found:
        raise UserError(f"{path}: no 'x' in this file; expected 'x' (N, H, W, C) and 'y'")
    named = {IMAGE_KEY: found["x"], **({LABEL_KEY: found["y"]} if "y" in found else {})}
    return checked(named, path)


def checked(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a file's content when its images have a known form. Raises UserError."""
    image, rows, labels = content[IMAGE_KEY], content.get(METADATA_KEY), content.get(LABEL_KEY)
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise UserError(f"{path}: images have type {image.dtype}; expected floats in [-1, 1] or uint8")
    if rows is not None:
        rows = content[METADATA_KEY] = torch.as_tensor(rows)
        whole = rows.ndim == 2 and rows.shape[1] in (4, 5) and not rows.is_floating_point() and image.ndim == 1
        if not whole or not all(0 <= o <= o + n <= len(image) and n == prod(s) for o, n, *s in rows.tolist()):
            raise UserError(f"{path}: {METADATA_KEY!r} does not fit; expected offset, numel, shape")
    elif image.ndim not in (3, 4) or not image.numel():
        raise UserError(f"{path}: images have shape {tuple(image.shape)}; expected (N, height, width, 1 or 3)")
    if labels is not None and (not isinstance(labels, Tensor) or labels.is_floating_point() or not labels.numel()):
        raise UserError(f"{path}: {LABEL_KEY!r} holds no whole numbers; write class numbers from 0")
    if labels is not None and int(labels.min()) < 0:
        raise UserError(f"{path}: {LABEL_KEY!r} goes down to {int(labels.min())}; write class numbers from 0")
    return content


def is_channels_first(image: Tensor, is_sample_file: bool) -> bool:
    """Whether images are (N, C, H, W); a sample file's always are. Raises UserError when they are neither way."""
    if image.ndim == 3:
        return False
    first, last = image.shape[1] in (1, 3), image.shape[3] in (1, 3)
    if not first and not last:
        raise UserError(f"images have shape {tuple(image.shape)}; expected (N, height, width, 1 or 3)")
    return first and (is_sample_file or not last)


def cache_dataset(
    dataset: Dataset,
    output: str | os.PathLike,
    *,
    batch_size: int = 256,
    num_workers: int = 0,
    as_bytes: bool = False,
    progress: bool = True,
) -> int:
    """Write the items of a data set into one ``.pt`` file that `InMemoryDataset` reads; returns their number.

    Number fields are stacked; text fields are left out. Images of different sizes are laid flat, with ``metadata``.
    ``as_bytes`` stores uint8 in a quarter of the room, when every value is one of the 256 levels.
    Raises UserError for an empty set, items without ``image``, and values between the levels with ``as_bytes``.
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
    content = {**laid_out(images), **{name: torch.stack(values) for name, values in others.items()}}
    write_atomic(Path(output), lambda temporary: torch.save(content, temporary))
    return len(images)


def stored_form(image: Tensor, as_bytes: bool, number: int) -> Tensor:
    """An image in [-1, 1] as it is, or as uint8 when that loses nothing. Raises UserError when it would."""
    if not as_bytes or image.dtype == torch.uint8:
        return image
    levels = (image + 1) * 127.5
    if not torch.allclose(levels, levels.round(), rtol=0, atol=1e-3) or levels.min() < -0.5 or levels.max() > 255.5:
        raise UserError(f"image {number} has values between the 256 levels; store floats, without --uint8")
    return levels.round().to(torch.uint8)


def laid_out(images: list[Tensor]) -> dict[str, Tensor]:
    """Images stacked, or one after the other with their offsets, lengths and shapes when these differ."""
    if len({image.shape for image in images}) == 1:
        whole = torch.empty(len(images), *images[0].shape, dtype=images[0].dtype)
        for number in range(len(images)):
            whole[number] = images[number]
            images[number] = whole[number]  # the loose image goes, so that all of them are never there twice
        return {IMAGE_KEY: whole}
    numels = [image.numel() for image in images]
    offsets = np.cumsum([0, *numels[:-1]]).tolist()
    rows = [[offset, numel, *image.shape] for offset, numel, image in zip(offsets, numels, images, strict=True)]
    return {IMAGE_KEY: torch.cat([image.flatten() for image in images]), METADATA_KEY: torch.tensor(rows)}
