"""A network of the user's own as feature extractor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.evaluation.features import make_extractor
from ldm.evaluation.metrics.statistics import compute_statistics

HERE = __name__


class Means(nn.Module):
    """Mean of each of 4 areas, weighted."""

    resize = "area 2"

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(images.mean(dim=1, keepdim=True), 2).flatten(1) * self.weight


class Maps(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images


class NoNetwork:
    pass


def test_named_by_its_class_with_weights(tmp_path: Path) -> None:
    torch.save({"weight": torch.tensor([2.0, 2, 2, 2])}, tmp_path / "w.pth")
    plain, doubled = (make_extractor(f"{HERE}.Means", weights=weights) for weights in (None, tmp_path / "w.pth"))
    images = torch.rand(9, 3, 8, 8) * 2 - 1
    assert torch.allclose(doubled(images), 2 * plain(images))
    assert plain.weights != doubled.weights and len(plain.weights) == 16
    statistics = compute_statistics([images], plain)
    assert statistics.extractor == f"{HERE}.Means" and statistics.resize == "area 2" and statistics.mu.shape == (4,)
    assert plain.dim == 4


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    torch.save({"other": torch.ones(4)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="do not fit"):
        make_extractor(f"{HERE}.Means", weights=tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"not a torch\.nn\.Module"):
        make_extractor(f"{HERE}.NoNetwork")
    with pytest.raises(UserError, match="Missing"):
        make_extractor(f"{HERE}.Missing")
    with pytest.raises(UserError, match=r"\(2, 3, 8, 8\).*one row each"):
        make_extractor(f"{HERE}.Maps")(torch.zeros(2, 3, 8, 8))
