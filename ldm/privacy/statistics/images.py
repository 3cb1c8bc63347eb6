"""`ClassMeanImages`: the mean image of each class, coarse enough to survive the noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.errors import UserError
from ldm.privacy.statistics.query import Release, chunks, clipped
from ldm.privacy.validate import number, whole


@dataclass(frozen=True)
class ClassMeanImages:
    """Sums of (1, image / R) for each class; images (N, C, H, W) are averaged to ``side`` pixels and clipped to norm R.

    A record's contribution is at most sqrt(2) long. ``clip_norm`` None is sqrt(channels) · side, the largest norm of an
    image in [-1, 1]; a smaller public constant means less noise. All fields are public constants.
    """

    classes: int
    side: int
    channels: int = 1
    clip_norm: float | None = None
    name: str = "class mean images"

    def __post_init__(self) -> None:
        for field in ("classes", "side", "channels"):
            whole(field, getattr(self, field))
        if self.clip_norm is not None:
            number("clip_norm of the mean images", self.clip_norm, above=0)

    @property
    def limit(self) -> float:
        """The norm R to which an image is clipped."""
        return math.sqrt(self.channels) * self.side if self.clip_norm is None else self.clip_norm

    @property
    def bound(self) -> float:
        """Largest norm of one record's contribution."""
        return math.sqrt(2.0)

    def describe(self) -> dict[str, Any]:
        """The public constants as plain JSON values."""
        return {"classes": self.classes, "side": self.side, "channels": self.channels, "clip_norm": self.limit}

    def total(self, records: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """``count`` (classes,) and ``image`` (classes, channels, side, side)."""
        if records.ndim != 4 or records.shape[1] != self.channels:
            raise UserError(f"images have shape {tuple(records.shape)}; expected (N, {self.channels}, H, W)")
        count = torch.zeros(self.classes, dtype=torch.float64)
        image = torch.zeros(self.classes, self.channels * self.side**2, dtype=torch.float64)
        shape = records.shape[1:]
        for rows, which in chunks(records, labels, self.classes):
            coarse = F.adaptive_avg_pool2d(rows.view(-1, *shape), self.side).flatten(1)
            count.index_add_(0, which, torch.ones(len(which), dtype=torch.float64))
            image.index_add_(0, which, clipped(coarse, self.limit) / self.limit)
        return {"count": count, "image": image.view(self.classes, self.channels, self.side, self.side)}

    def means(self, release: Release) -> Tensor:
        """The mean image of each class (classes, channels, side, side) in [-1, 1], by the *noisy* counts."""
        count = release.sums["count"].clamp(min=release.noise_std)
        return (self.limit * release.sums["image"] / count.view(-1, 1, 1, 1)).clamp(-1, 1)
