"""ImageNet for super-resolution: every image with a degraded, smaller version of itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ldm.data.base import digest, size_from_config, to_item
from ldm.data.formats.plain_pickle import read_pickle
from ldm.data.imagenet_folder import ImageNetFolder, ImageNetTrain, ImageNetValidation, cut_square
from ldm.errors import UserError, nearest

DEGRADATIONS = {f"pil_{kind.name.lower()}": kind for kind in Image.Resampling}
NEEDS_MORE = ("bsrgan", "bsrgan_light", "cv_nearest", "cv_bilinear", "cv_bicubic", "cv_area", "cv_lanczos")


class ImageNetSR(ImageNetFolder):
    """A square crop of every image as ``image`` (size, size, 3), and as ``LR_image``, smaller by ``downscale_f``.

    The crop's side is a fraction, ``min_crop_f`` to ``max_crop_f``, of the image's shorter side. With ``random_crop``
    the fraction and the position are random; otherwise it is the largest crop, in the centre.

    Args:
        downscale_f: ``size`` over the side of ``LR_image``, a whole number from 1.
        min_crop_f: smallest side of the crop as a fraction of the shorter side, above 0.
        max_crop_f: largest side of the crop as a fraction of the shorter side, at most 1.
        size: side of ``image``, a multiple of ``downscale_f``; required.
        degradation: method that makes ``LR_image``: pil_nearest, pil_bilinear, pil_bicubic, pil_box, pil_hamming or
            pil_lanczos. The original code's cv_... and bsrgan... need packages that are not used here, and are refused.
        index_file: a pickled list of the positions to use, like the original ``imagenet_train_hr_indices.p``.
        data_root, config: see `ldm.data.imagenet_folder.ImageNetFolder`; ``config`` holds ``size`` only.

    Raises:
        UserError: for an invalid option, and when the data are missing.
    """

    def __init__(
        self,
        size: int | None = None,
        degradation: str | None = None,
        downscale_f: int = 4,
        min_crop_f: float = 0.5,
        max_crop_f: float = 1.0,
        random_crop: bool | None = None,
        *,
        data_root: str | os.PathLike[str] | None = None,
        index_file: str | os.PathLike[str] | None = None,
        config: Mapping[str, Any] | None = None,
    ):
        name = type(self).__name__
        size = size_from_config(size, config, name)
        if size is None or downscale_f < 1 or size % downscale_f:
            raise UserError(f"{name}: size={size} is no multiple of downscale_f={downscale_f}; give size=256")
        if not 0.0 < min_crop_f <= max_crop_f <= 1.0:
            raise UserError(f"{name}: crops from {min_crop_f} to {max_crop_f}; give 0 < min_crop_f <= max_crop_f <= 1")
        if degradation in NEEDS_MORE:
            raise UserError(f"{name}: degradation={degradation!r} needs OpenCV and is not offered; use pil_bicubic")
        if degradation not in DEGRADATIONS:
            hint = nearest(str(degradation), DEGRADATIONS)
            raise UserError(f"{name}: degradation={degradation!r}{hint}; one of {', '.join(DEGRADATIONS)}")
        crop = not self.is_evaluation if random_crop is None else random_crop
        super().__init__(size, data_root=data_root, random_crop=crop)
        self.smaller = size // downscale_f
        self.filter = DEGRADATIONS[degradation]
        self.crop_range = (min_crop_f, max_crop_f)
        if index_file is not None:
            kept = read_indices(index_file, len(self))
            assert self._labels is not None
            self.files, self._labels = [self.files[i] for i in kept], self._labels[kept]
            self.rows = np.asarray(kept)

    def source_digest(self) -> str:
        return digest(super().source_digest(), self.smaller, self.filter.name, self.crop_range)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = self._checked(index)
        image = self.pixels(index)
        assert self.size is not None
        part, down, right = self._draws.uniform(index, 3) if self.random_crop else (1.0, 0.5, 0.5)
        low, high = self.crop_range
        side = max(1, round(min(image.shape[:2]) * (low + part * (high - low))))
        shrinking = side > self.size  # area averaging when shrinking, as in the original code
        filter = Image.Resampling.BOX if shrinking else Image.Resampling.BICUBIC
        image = cut_square(image, side, down, right, self.size, filter)
        smaller = np.asarray(Image.fromarray(image).resize((self.smaller, self.smaller), self.filter))
        images = {"image": to_item(image, self.channels), "LR_image": to_item(smaller, self.channels)}
        return {**images, **self.annotations(index)}


class ImageNetSRTrain(ImageNetSR):
    """Random square crops of ImageNet's training images."""

    folder_names, how_to_fetch = ImageNetTrain.folder_names, ImageNetTrain.how_to_fetch


class ImageNetSRValidation(ImageNetSR):
    """Centre crops of ImageNet's validation images."""

    is_evaluation = True
    folder_names, how_to_fetch = ImageNetValidation.folder_names, ImageNetValidation.how_to_fetch


def read_indices(path: str | os.PathLike[str], count: int) -> list[int]:
    """Return the pickled list of positions, 0 to ``count - 1``, in a file; no code is executed. Raises UserError."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such index file; leave index_file out to use all images")
    content = read_pickle(Path(path))
    try:
        found = [int(position) for position in content]
    except (TypeError, ValueError):
        raise UserError(f"{path}: holds no list of positions; leave index_file out to use all images") from None
    wrong = [position for position in found if not 0 <= position < count]
    if wrong or not found:
        raise UserError(f"{path}: positions {wrong[:3] or 'none'} of {count} images; it belongs to another set")
    return found
