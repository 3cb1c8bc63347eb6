"""Base class of rendered data sets: the items depend only on a public seed, are drawn once and kept on disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.base import RecordDataset, cache_home, digest, size_from_config
from ldm.errors import UserError
from ldm.files import file_digest, write_text

log = logging.getLogger(__name__)


class RenderedDataset(RecordDataset):
    """Images drawn from random numbers; item i depends on the seed, the split and i, but not on the count.

    A subclass implements ``render() -> uint8 (count, size, size[, 3])`` and ``source_digest()``, sets ``kind``, and
    calls `open_images` at the end of its ``__init__``. Classes alternate, so they are balanced.

    Args:
        count: number of images.
        size: side in pixels; a multiple of 8 has an empty border of one sixteenth on every side (32 = 28 + 2 * 2).
        seed: public constant, 0 or more.
        cache: folder for drawn images; default ``<user cache>/ldm/<kind>``.

    Raises:
        UserError: for an invalid count, seed or size.
    """

    size: int  # has a default
    num_classes: int
    kind = "rendered"
    smallest = 16  # smaller images cannot show the drawing
    stored_channels = 1  # 3 for a subclass that draws in colour
    stream = 0  # number of the split; each has its own random numbers for a seed

    def __init__(
        self,
        count: int,
        size: int | None = 32,
        flip_p: float = 0.0,
        *,
        seed: int = 0,
        channels: int = 1,
        cache: str | os.PathLike[str] | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        size = size_from_config(None if config is not None and "size" in config else size, config, type(self).__name__)
        super().__init__(32 if size is None else size, flip_p, channels=channels)
        if count < 1:
            raise UserError(f"{self.kind}: count={count}; give the number of images, 1 or more")
        if not 0 <= int(seed) < 2**63:
            raise UserError(f"{self.kind}: seed={seed}; give a whole number from 0")
        if self.size < self.smallest or (self.size != 28 and self.size % 8):
            raise UserError(f"{self.kind}: size={self.size}; give 28 or a multiple of 8 from {self.smallest}")
        self.count, self.seed = int(count), int(seed)
        self.cache = Path(cache) if cache is not None else cache_home() / "ldm" / self.kind
        self._images: np.ndarray | None = None

    @property
    def frame(self) -> int:
        """Side of the drawn area in pixels: 28 of a 28x28 image, else seven eighths of the size."""
        return 28 if self.size == 28 else self.size * 7 // 8

    def __len__(self) -> int:
        return self.count

    def label(self, index: int) -> int:
        return int(index % self.num_classes)

    @property
    def labels(self) -> np.ndarray:
        return (np.arange(self.count) % self.num_classes).astype(np.int64)

    def pixels(self, index: int) -> np.ndarray:
        assert self._images is not None  # `open_images` was called
        return self._images[index]

    def render(self) -> np.ndarray:
        """Return all images, uint8 (count, size, size), with an axis of 3 for ``stored_channels`` 3."""
        raise NotImplementedError

    def framed(self, images: np.ndarray) -> np.ndarray:
        """Return images (N, frame, frame) with an empty border added, (N, size, size)."""
        border = (self.size - self.frame) // 2
        return np.pad(images, ((0, 0), (border, border), (border, border)))

    def open_images(self) -> None:
        """Memory-map the file of drawn images; draw them first when the file is missing or damaged."""
        path = self.cache / f"{self.kind}-{digest(self.source_digest(), self.count)}.npy"
        shape = (self.count, self.size, self.size, *([3] if self.stored_channels == 3 else []))
        self._images = kept_images(path, shape)
        if self._images is None:
            self._images = keep_images(path, self.render())

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_images": None}  # each worker maps the file itself, so the images are not copied

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.open_images()


def kept_images(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the memory-mapped uint8 images of a file from `keep_images`; None when it is missing or changed."""
    try:
        images = np.load(path, mmap_mode="r")
        if images.shape == shape and images.dtype == np.uint8 and _note(path).read_text() == file_digest(path):
            return images
        log.warning("%s is damaged (wrong shape or content) and is made again", path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, EOFError) as error:
        log.warning("%s is damaged (%s) and is made again", path, error)
    return None


def keep_images(path: Path, images: np.ndarray) -> np.ndarray:
    """Write images to a file and its digest beside it; return the images memory-mapped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npy")
    np.save(temporary, images)
    content = file_digest(temporary)
    temporary.replace(path)
    write_text(_note(path), content)
    return np.load(path, mmap_mode="r")


def _note(path: Path) -> Path:
    return path.with_suffix(".sha256")
