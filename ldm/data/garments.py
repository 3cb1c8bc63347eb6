"""Rendered garments: the ten names of Fashion-MNIST's classes, drawn from what the words mean.

No picture of Fashion-MNIST was looked at for the drawing: names were all that was taken from it, and the published
description of how its pictures were framed (trimmed, longer side 28 pixels, light on black).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ldm.data.base import RecordDataset, cache_home, digest, size_from_config
from ldm.data.rendering.garment_paint import painted
from ldm.data.rendering.garment_pieces import Dice, Piece
from ldm.data.rendering.garment_shoes import ankle_boot, bag, sandal, sneaker
from ldm.data.rendering.garment_tops import coat, dress, pullover, shirt, t_shirt, trouser
from ldm.errors import UserError

log = logging.getLogger(__name__)

RENDER_VERSION = 1
NAMES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
PLAIN = (0.5, 0.7, 0.55, 0.6, 0.65, 0.85, 0.45, 0.8, 0.7, 0.85)  # share of garments without a pattern
DRAWN: tuple[Callable[[Dice], list[Piece]], ...] = (
    t_shirt,
    trouser,
    pullover,
    dress,
    coat,
    sandal,
    shirt,
    sneaker,
    bag,
    ankle_boot,
)


class GarmentsTrain(RecordDataset):
    """Rendered garments with labels 0-9 in the order of `NAMES`; nothing private is read.

    Item i depends on (seed, size) and i only. Pictures are rendered once (about 2 ms each) and kept as a
    memory-mapped file in the user's cache folder.

    Args:
        count: number of pictures; classes take turns, so they are balanced.
        size: side in pixels; a multiple of 8 has an empty border of a sixteenth (32 = 28 and a border of 2).
        seed: public constant, 0 or more.
        cache: folder for rendered pictures; default ``<user cache>/ldm/garments``.

    Raises:
        UserError: on arguments outside these.
    """

    num_classes = len(NAMES)
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
        if count < 1 or not 0 <= int(seed) < 2**63:
            raise UserError(f"garments: count={count}, seed={seed}; give 1 picture or more and a seed from 0")
        if self.size < 16:
            raise UserError(f"garments: size={self.size} is too small to draw clothes; give 28 or 32")
        self.count, self.seed = int(count), int(seed)
        self.cache = Path(cache) if cache is not None else cache_home() / "ldm" / "garments"
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
        return digest(self.seed, self.stream, self.size, RENDER_VERSION)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_images": None}  # a worker maps the file again instead of receiving a copy

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._images = self._load()

    def _load(self) -> np.ndarray:
        """Return the pictures, uint8 (count, size, size), memory-mapped; render them when there are none."""
        path = self.cache / f"garments-{digest(self.source_digest(), self.count)}.npy"
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
        frame = self.size * 7 // 8 if self.size % 8 == 0 else self.size
        border = (self.size - frame) // 2
        out = np.zeros((self.count, self.size, self.size), dtype=np.uint8)
        for index in tqdm(range(self.count), desc="rendering garments", leave=False, disable=None):
            picture = garment(index % self.num_classes, self.seed, self.stream, index, frame)
            out[index, border : border + frame, border : border + frame] = picture
        return out


class GarmentsVal(GarmentsTrain):
    """Other garments of the same kind, for validation on public data; arguments as in `GarmentsTrain`."""

    stream = 1


def garment(kind: int, seed: int, stream: int, index: int, frame: int = 28) -> np.ndarray:
    """Return one garment of class ``kind`` as uint8 (frame, frame), a function of the arguments only."""
    dice = Dice(np.random.Generator(np.random.Philox(key=[seed, (stream << 32) + index])))
    picture = painted(DRAWN[kind](dice), dice, frame, PLAIN[kind])
    return picture[:, ::-1] if dice.chance(0.5) else picture
