"""All ImageNet data sets under the names that configurations use."""

from __future__ import annotations

from ldm.data.imagenet_folder import ImageNetTrain, ImageNetValidation
from ldm.data.imagenet_small import ImageNet32Train, ImageNet32Validation, ImageNet64Train, ImageNet64Validation
from ldm.data.imagenet_sr import ImageNetSRTrain, ImageNetSRValidation

__all__ = [
    "ImageNet32Train",
    "ImageNet32Validation",
    "ImageNet64Train",
    "ImageNet64Validation",
    "ImageNetSRTrain",
    "ImageNetSRValidation",
    "ImageNetTrain",
    "ImageNetValidation",
]
