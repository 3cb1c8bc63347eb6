"""Condition stages: encoders of a record's label or text for cross-attention."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError, nearest
from ldm.modules.encoders.clip import FrozenCLIPEmbedder
from ldm.modules.encoders.text import BERTEmbedder, BERTTokenizer, TransformerEmbedder

__all__ = [
    "BERTEmbedder",
    "BERTTokenizer",
    "ClassEmbedder",
    "FrozenCLIPEmbedder",
    "FrozenCLIPTextEmbedder",
    "SpatialRescaler",
    "TransformerEmbedder",
]

FrozenCLIPTextEmbedder = FrozenCLIPEmbedder

RESCALERS = ("nearest", "linear", "bilinear", "trilinear", "bicubic", "area")


class ClassEmbedder(nn.Module):
    """A learned vector per class: labels (B,) int64 in [0, n_classes) -> one token (B, 1, embed_dim).

    `key` is the batch entry with the labels. With `ucg_rate` > 0 the last class, n_classes-1, is the null class for
    classifier-free guidance (Ho and Salimans 2021): count it in `n_classes`, and let the trainer pass every training
    label through `drop`. `forward` itself uses no random numbers, so a record's loss depends on that record only.

    Raises UserError for a rate outside [0, 1), or an `n_classes` that leaves no class beside the null class.

    Args:
        embed_dim: width of a class vector; the UNet's context_dim.
        n_classes: number of classes, the null class included where there is one.
        key: entry of a batch that holds the labels.
        ucg_rate: share of training labels that are replaced by the null class, in [0, 1).
    """

    def __init__(self, embed_dim: int, n_classes: int = 1000, key: str = "class", ucg_rate: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= ucg_rate < 1.0:
            raise UserError(f"ClassEmbedder ucg_rate: {ucg_rate} must be at least 0 and below 1")
        if n_classes < (2 if ucg_rate > 0 else 1):
            raise UserError(
                f"ClassEmbedder n_classes: {n_classes} is too small; count the null class when ucg_rate > 0"
            )
        self.key = key
        self.n_classes = n_classes
        self.ucg_rate = ucg_rate
        self.embedding = nn.Embedding(n_classes, embed_dim)

    @property
    def null_class(self) -> int:
        """The label of the unconditional class."""
        return self.n_classes - 1

    def forward(self, batch: Mapping[str, Tensor], key: str | None = None) -> Tensor:
        """Embed `batch[key]` (B,) as (B, 1, embed_dim). Raises UserError for a label outside the classes (CPU only)."""
        labels = batch[self.key if key is None else key]
        try:
            return self.embedding(labels[:, None])
        except IndexError:  # raised by the lookup on the CPU; on a GPU, call `check` before moving the batch there
            self.check(labels)
            raise

    def drop(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Labels, each independently replaced by the null class with probability `ucg_rate`.

        Call it in training only. `generator` must live on the labels' device.
        """
        if self.ucg_rate == 0.0:
            return labels
        draws = torch.rand(labels.shape, generator=generator, device=labels.device)
        return labels.masked_fill(draws < self.ucg_rate, self.null_class)

    def check(self, labels: Tensor) -> None:
        """Raise UserError when a label is outside [0, n_classes). Cheap on the CPU; synchronizes on a GPU."""
        outside = labels[(labels < 0) | (labels >= self.n_classes)]
        if len(outside) > 0:
            raise UserError(
                f"{self.key}: label {int(outside[0])} is outside the model's {self.n_classes} classes "
                f"(0 to {self.n_classes - 1}); correct the labels, or cond_stage_config.params.n_classes"
            )


class SpatialRescaler(nn.Module):
    """Rescales an image ``n_stages`` times by ``multiplier``, then maps its channels when ``out_channels`` is given.

    (B, in_channels, H, W) -> (B, out_channels or in_channels, H', W'). ``method`` is an interpolation of torch.
    Raises UserError for another method or a negative number of stages.
    """

    def __init__(
        self,
        n_stages: int = 1,
        method: str = "bilinear",
        multiplier: float = 0.5,
        in_channels: int = 3,
        out_channels: int | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if n_stages < 0:
            raise UserError(f"SpatialRescaler n_stages: {n_stages} is negative; give 0 or more")
        if method not in RESCALERS:
            raise UserError(
                f"SpatialRescaler method: {method!r} is unknown; choose one of {', '.join(RESCALERS)}"
                f"{nearest(method, RESCALERS)}"
            )
        self.n_stages = n_stages
        self.method = method
        self.multiplier = multiplier
        self.channel_mapper = None if out_channels is None else nn.Conv2d(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.n_stages):
            x = F.interpolate(x, scale_factor=self.multiplier, mode=self.method)
        return x if self.channel_mapper is None else self.channel_mapper(x)

    def encode(self, x: Tensor) -> Tensor:
        """The same as calling the module."""
        return self(x)
