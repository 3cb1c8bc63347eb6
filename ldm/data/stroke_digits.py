"""Public images of digits drawn as synthetic pen strokes, framed like MNIST; no person's handwriting is used."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from tqdm import tqdm

from ldm.data.base import digest
from ldm.data.rendering.rendered import RenderedDataset
from ldm.data.rendering.strokes import BLOCK, HABITS, HandRange, random_hands, write

RENDER_VERSION = 1


class StrokeDigitsTrain(RenderedDataset):
    """Images of 0-9 drawn with a pen in several writing habits (`ldm.data.rendering.strokes`).

    Arguments and errors as in `ldm.data.rendering.rendered.RenderedDataset`.
    """

    kind = "strokes"
    num_classes = len(HABITS)
    mirrorable = False

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
        self.hand = HandRange()
        self.open_images()

    def source_digest(self) -> str:
        return digest(self.seed, self.stream, asdict(self.hand), HABITS, self.size, RENDER_VERSION)

    def render(self) -> np.ndarray:
        out = np.empty((self.count, self.frame, self.frame), dtype=np.uint8)
        box = 20 if self.size == 28 else self.size * 5 // 8
        blocks = range(-(-self.count // BLOCK))
        for block in tqdm(blocks, desc="writing digits", unit_scale=BLOCK, unit="image", leave=False, disable=None):
            start, stop = block * BLOCK, min((block + 1) * BLOCK, self.count)
            uniform, normal = (part[: stop - start] for part in random_hands(self.seed, self.stream, block))
            out[start:stop] = write(self.labels[start:stop], uniform, normal, self.hand, box, self.frame)
        return self.framed(out)


class StrokeDigitsVal(StrokeDigitsTrain):
    """The same digits with other random draws, for validation on public data; arguments as in `StrokeDigitsTrain`."""

    stream = 1
