"""Feature extractors by name."""

from __future__ import annotations

from pathlib import Path

import torch

from ldm.errors import UserError, nearest
from ldm.evaluation.features.base import EXTRACTORS, FeatureExtractor, PixelFeatures


def make_extractor(
    name: str, *, weights: str | Path | None = None, device: torch.device | str = "cpu"
) -> FeatureExtractor:
    """The extractor called `name`: inception (2048), efficientnet-lite0 (1280), digits-cnn (128), pixels (64), or a
    torch module class by its dotted name.

    weights: a file; when None, inception downloads its own and efficientnet-lite0 looks for its installed package;
    digits-cnn needs one, pixels takes none. Raises UserError for an unknown name or weights that are not available.
    """
    if name == "inception":
        from ldm.evaluation.features.inception import InceptionFeatures

        return InceptionFeatures(weights, device)
    if name == "efficientnet-lite0":
        from ldm.evaluation.features.efficientnet import EfficientNetFeatures

        return EfficientNetFeatures(weights, device)
    if name == "digits-cnn":
        from ldm.evaluation.features.digits import DigitFeatures

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
        from ldm.evaluation.features.user_module import ModuleFeatures

        return ModuleFeatures(name, weights, device)
    raise UserError(
        f"unknown extractor {name!r}{nearest(name, EXTRACTORS)} (known: {', '.join(EXTRACTORS)}, "
        "or the dotted name of a torch module class)"
    )
