"""The protocols of feature extractors, the pixel features, and the digest of an extractor's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch.nn.functional as F
from torch import Tensor

from ldm.evaluation.inputs.images import to_grey

EXTRACTORS = ("inception", "efficientnet-lite0", "digits-cnn", "pixels")


class FeatureExtractor(Protocol):
    """Maps images (N, 1 or 3, H, W) in [-1, 1], on any device, to features (N, dim) float32.

    name, resize (the rule that brings images to the network's size) and weights (a digest, "" without weights) are
    stored with the statistics, so that statistics of different extractors are not compared.
    """

    name: str
    dim: int
    resize: str
    weights: str

    def __call__(self, images: Tensor) -> Tensor: ...


@runtime_checkable
class Classifying(Protocol):
    """An extractor whose network also has class logits, which the Inception score needs."""

    def logits(self, features: Tensor) -> Tensor:
        """Logits (N, classes) from the features (N, dim) that the extractor gave."""
        ...


class PixelFeatures:
    """The grey image averaged over an 8x8 grid, 64 values in [-1, 1]; needs no weights and captures layout only."""

    name, dim, resize, weights = "pixels", 64, "area 8", ""

    def __call__(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(to_grey(images.float()), 8).flatten(1)


def weights_digest(state_dict: Mapping[str, Tensor]) -> str:
    """16 hex digits that depend on names, shapes and values, and not on the file format."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        value = state_dict[name].detach().cpu().float().contiguous()
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:16]
