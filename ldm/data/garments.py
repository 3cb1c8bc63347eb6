"""Rendered garments of the ten Fashion-MNIST classes, drawn from the meaning of the class names.

The drawings use no Fashion-MNIST image, only its class names and the published description of its framing (trimmed,
longer side 28 pixels, light on black).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tqdm import tqdm

from ldm.data.base import digest
from ldm.data.rendering.garment_paint import painted
from ldm.data.rendering.garment_pieces import Dice, Piece
from ldm.data.rendering.garment_shoes import ankle_boot, bag, sandal, sneaker
from ldm.data.rendering.garment_tops import coat, dress, pullover, shirt, t_shirt, trouser
from ldm.data.rendering.rendered import RenderedDataset

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


class GarmentsTrain(RenderedDataset):
    """Rendered garments with labels 0-9 in the order of `NAMES`, about 2 ms each; no private data is read.

    Arguments and errors as in `ldm.data.rendering.rendered.RenderedDataset`.
    """

    kind = "garments"
    num_classes = len(NAMES)

    def __init__(
        self,
        count: int = 40000,
        size: int | None = 32,
        flip_p: float = 0.0,
        *,
        seed: int = 0,
        channels: int = 1,
        cache: str | os.PathLike[str] | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        super().__init__(count, size, flip_p, seed=seed, channels=channels, cache=cache, config=config)
        self.open_images()

    def source_digest(self) -> str:
        return digest(self.seed, self.stream, self.size, RENDER_VERSION)

    def render(self) -> np.ndarray:
        out = np.empty((self.count, self.frame, self.frame), dtype=np.uint8)
        for index in tqdm(range(self.count), desc="rendering garments", leave=False, disable=None):
            out[index] = garment(self.label(index), self.seed, self.stream, index, self.frame)
        return self.framed(out)


class GarmentsVal(GarmentsTrain):
    """Rendered garments with other random draws, for validation on public data; arguments as in `GarmentsTrain`."""

    stream = 1


def garment(kind: int, seed: int, stream: int, index: int, frame: int = 28) -> np.ndarray:
    """Return one garment of class ``kind`` as uint8 (frame, frame), a deterministic function of the arguments."""
    dice = Dice(np.random.Generator(np.random.Philox(key=[seed, (stream << 32) + index])))
    image = painted(DRAWN[kind](dice), dice, frame, PLAIN[kind])
    return image[:, ::-1] if dice.chance(0.5) else image
