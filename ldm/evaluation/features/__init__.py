"""Image features for Fréchet distances: the standard Inception features, and stand-ins that are never called FID."""

from __future__ import annotations

from ldm.evaluation.features.base import EXTRACTORS, Classifying, FeatureExtractor, PixelFeatures, weights_digest
from ldm.evaluation.features.registry import make_extractor
from ldm.evaluation.features.shared import shared

__all__ = [
    "EXTRACTORS",
    "Classifying",
    "FeatureExtractor",
    "PixelFeatures",
    "make_extractor",
    "shared",
    "weights_digest",
]
