"""Made-up records in the place of a private data set that is not at hand, for whole runs of shipped configurations."""

from __future__ import annotations

from typing import Any

import numpy as np

from ldm.data.base import ArrayDataset

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "smiling", "woman", "man", "with", "blond", "hair")


class Records(ArrayDataset):
    """``count`` noisy images whose labels go round; with ``captions`` a text each instead of a label."""

    def __init__(self, size: int, classes: int = 2, count: int = 24, captions: bool = False, channels: int = 3):
        images = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
        super().__init__(images, np.arange(count) % classes, channels=channels)
        self.captions = captions

    @property
    def labels(self) -> np.ndarray | None:
        return None if self.captions else super().labels

    def annotations(self, index: int) -> dict[str, Any]:
        if not self.captions:
            return super().annotations(index)
        return {"caption": " ".join(WORDS[4 + index % 3 :][:3])}
