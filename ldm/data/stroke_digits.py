"""Public pictures of digits written by a rendered hand, framed as MNIST is; no handwriting of anybody is read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ldm.data.base import RecordDataset, cache_home, digest, size_from_config
from ldm.data.rendering.strokes import BLOCK, HABITS, HandRange, random_hands, write
from ldm.errors import UserError

RENDER_VERSION = 1


class StrokeDigitsTrain(RecordDataset):
    """Pictures of 0-9 drawn with a pen in several writing habits (`ldm.data.rendering.strokes`).

    Item i depends on (seed, size) and i only. Pictures are rendered once and kept as a memory-mapped file.

    Args:
        count: number of pictures; classes take turns, so they are balanced.
        size: 28 (MNIST's frame), or a multiple of 8 (32 = that frame with a border of 2).
        seed: public constant, 0 or more.
        cache: folder for rendered pictures; default ``<user cache>/ldm/strokes``.

    Raises:
        UserError: on arguments outside these.
    """

    num_classes = len(HABITS)
    mirrorable = False
    stream = 0

    def __init__(
        self,
        count: int = 40000,
        size: int | None = 32,
        flip_p: float = 0.0,
        *,
        seed: int = 0,
        channels: int = 1,
        cache: str | os.PathLike | None = None,
        config: Mapping | None = None,
    ):
        size = size_from_config(None if config is not None and "size" in config else size, config, type(self).__name__)
        super().__init__(32 if size is None else size, flip_p, channels=channels)
        if self.size != 28 and (self.size % 8 or self.size < 8):
            raise UserError(f"stroke digits: size={self.size}; give 28 or a multiple of 8")
        if count < 1 or not 0 <= int(seed) < 2**63:
            raise UserError(f"stroke digits: count={count}, seed={seed}; give 1 picture or more and a seed from 0")
        self.count, self.seed = int(count), int(seed)
        self.hand = HandRange()
        self.cache = Path(cache) if cache is not None else cache_home() / "ldm" / "strokes"
        self._images: np.ndarray | None = self._load()

    def __len__(self) -> int:
        return self.count

    def label(self, index: int) -> int:
        return int(index % self.num_classes)

    @property
    def labels(self) -> np.ndarray:
        return (np.arange(self.count) % self.num_classes).astype(np.int64)

    def pixels(self, index: int) -> np.ndarray:
        return self._images[index]

    def source_digest(self) -> str:
        return digest(self.seed, self.stream, asdict(self.hand), HABITS, self.size, RENDER_VERSION)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_images": None}  # a worker maps the file again instead of receiving a copy

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._images = self._load()

    def _load(self) -> np.ndarray:
        """Return the pictures, uint8 (count, size, size), memory-mapped; render them when there are none."""
        path = self.cache / f"strokes-{digest(self.source_digest(), self.count)}.npy"
        try:
            images = np.load(path, mmap_mode="r")
            if images.shape == (self.count, self.size, self.size) and images.dtype == np.uint8:
                return images
        except (OSError, ValueError, EOFError):
            pass
        images = self._render()
        self.cache.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npy")
        np.save(temporary, images)
        temporary.replace(path)
        return np.load(path, mmap_mode="r")

    def _render(self) -> np.ndarray:
        """Return all pictures, uint8 (count, size, size)."""
        images = np.zeros((self.count, self.size, self.size), dtype=np.uint8)
        box, frame = (20, 28) if self.size == 28 else (self.size * 5 // 8, self.size * 7 // 8)
        border = (self.size - frame) // 2
        blocks = range(-(-self.count // BLOCK))
        for block in tqdm(blocks, desc="writing digits", unit_scale=BLOCK, unit="image", leave=False, disable=None):
            start, stop = block * BLOCK, min((block + 1) * BLOCK, self.count)
            uniform, normal = (part[: stop - start] for part in random_hands(self.seed, self.stream, block))
            digits = np.arange(start, stop) % self.num_classes
            pictures = write(digits, uniform, normal, self.hand, box, frame)
            images[start:stop, border : border + frame, border : border + frame] = pictures
        return images


class StrokeDigitsVal(StrokeDigitsTrain):
    """Other pictures of the same kind, for validation on public data; arguments as in `StrokeDigitsTrain`."""

    stream = 1
