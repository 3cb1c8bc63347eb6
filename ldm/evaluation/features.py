"""Picture features for Fréchet distances: the standard Inception ones, and stand-ins that are never called FID."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.errors import UserError, nearest
from ldm.evaluation.images import to_grey

EXTRACTORS = ("inception", "efficientnet-lite0", "digits-cnn", "pixels")


class FeatureExtractor(Protocol):
    """Maps pictures (N, 1 or 3, H, W) in [-1, 1], on any device, to features (N, dim) float32.

    name, resize (how pictures reach the network's size) and weights (a digest, "" without weights) are stored with
    the statistics, so that only like is compared with like.
    """

    name: str
    dim: int
    resize: str
    weights: str

    def __call__(self, images: Tensor) -> Tensor: ...


@runtime_checkable
class Classifying(Protocol):
    """An extractor whose network also names classes, which the Inception score needs."""

    def logits(self, features: Tensor) -> Tensor:
        """Logits (N, classes) from the features (N, dim) that the extractor gave."""
        ...


class PixelFeatures:
    """The grey picture averaged over an 8x8 grid of areas, 64 values in [-1, 1]: needs no weights, sees layout only."""

    name, dim, resize, weights = "pixels", 64, "area 8", ""

    def __call__(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(to_grey(images.float()), 8).flatten(1)


def weights_digest(state_dict: Mapping[str, Tensor]) -> str:
    """16 hex digits that depend on names, shapes and values, not on how a file packs them."""
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        value = state_dict[name].detach().cpu().float().contiguous()
        digest.update(f"{name}{tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()[:16]


def make_extractor(
    name: str, *, weights: str | Path | None = None, device: torch.device | str = "cpu"
) -> FeatureExtractor:
    """The extractor called `name`: inception (2048), efficientnet-lite0 (1280), digits-cnn (128), pixels (64), or a
    torch module class by its dotted name.

    weights: a file; when None, inception downloads its own and efficientnet-lite0 looks for its installed package;
    digits-cnn needs one, pixels takes none. Raises UserError for an unknown name or weights that cannot be had.
    """
    if name == "inception":
        from ldm.evaluation.inception import InceptionFeatures

        return InceptionFeatures(weights, device)
    if name == "efficientnet-lite0":
        from ldm.evaluation.efficientnet import EfficientNetFeatures

        return EfficientNetFeatures(weights, device)
    if name == "digits-cnn":
        from ldm.evaluation.digits import DigitFeatures

        if weights is None:
            raise UserError(
                "digits-cnn needs --weights FILE; make the file with "
                "fid/train_digits_cnn.py --dataset ldm.data.glyphs.GlyphsTrain --output FILE"
            )
        return DigitFeatures.load(weights, device)
    if name == "pixels":
        if weights is not None:
            raise UserError("the pixels extractor has no weights; leave --weights out")
        return PixelFeatures()
    if "." in name:
        from ldm.evaluation.user_module import ModuleFeatures

        return ModuleFeatures(name, weights, device)
    raise UserError(
        f"unknown extractor {name!r}{nearest(name, EXTRACTORS)} (known: {', '.join(EXTRACTORS)}, "
        "or the dotted name of a torch module class)"
    )
