"""`FourierEmbedding`: the mean of random Fourier features of each class (Rahimi and Recht 2007; Harder et al. 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ldm.privacy.statistics.query import Release, chunks, clipped
from ldm.privacy.validate import number, whole


@dataclass(frozen=True)
class FourierEmbedding:
    """Sums of phi(z) for each class, phi(z) = sqrt(2 / D) (cos(z W), sin(z W)), whose length is 1 for every z.

    Rows are clipped to norm ``clip_norm`` first, since the rounding error of a huge record's angle is random and
    depends on the other records of its chunk. W (dimensions, D / 2) has independent normal entries of standard
    deviation 1 / ``width`` and follows from the public ``seed``; D = ``features`` is even. One record contributes a
    vector of length 1 to one row. The norm of a difference between two such means is the maximum mean discrepancy under
    a Gaussian kernel of that width. All fields are public constants.
    """

    classes: int
    dimensions: int
    features: int = 1000
    width: float = 1.0
    seed: int = 0
    clip_norm: float = 1e4
    name: str = "random Fourier embedding of classes"

    def __post_init__(self) -> None:
        for field in ("classes", "dimensions", "features"):
            whole(field, getattr(self, field))
        whole("features / 2", self.features // 2)
        number("width of the kernel", self.width, above=0)
        number("clip_norm of the embedding", self.clip_norm, above=0)

    @property
    def bound(self) -> float:
        """Norm of one record's contribution."""
        return 1.0

    @cached_property
    def frequencies(self) -> Tensor:
        """W, from the public seed."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = (self.dimensions, self.features // 2)
        return torch.randn(shape, generator=generator, dtype=torch.float64) / self.width

    def describe(self) -> dict[str, Any]:
        """The public constants as plain JSON values."""
        names = ("classes", "dimensions", "features", "width", "seed", "clip_norm")
        return {name: getattr(self, name) for name in names}

    def embed(self, rows: Tensor) -> Tensor:
        """phi of rows (B, dimensions): (B, 2 (D / 2)), differentiable."""
        angle = rows @ self.frequencies.to(rows)
        return torch.cat([angle.cos(), angle.sin()], dim=1) * math.sqrt(1 / self.frequencies.shape[1])

    def total(self, records: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """``embedding`` (classes, features)."""
        sums = torch.zeros(self.classes, 2 * self.frequencies.shape[1], dtype=torch.float64)
        for rows, which in chunks(records, labels, self.classes):
            sums.index_add_(0, which, self.embed(clipped(rows, self.clip_norm)))
        return {"embedding": sums}

    def mean(self, release: Release, records_a_class: float) -> Tensor:
        """Mean embeddings (classes, features); the divisor is a public or released number of records a class."""
        number("records_a_class", records_a_class, above=0)
        return release.sums["embedding"] / records_a_class
