"""LSUN (Yu et al., 2015): churches, bedrooms and cats, as extracted images and lists of their names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from ldm.data.base import DATA_ROOT_VARIABLE, FrameOptions
from ldm.data.base import data_root as data_folder
from ldm.data.folder import FileDataset
from ldm.errors import UserError
from ldm.files import read_text


class LsunOptions(FrameOptions, total=False):
    """Options that the data sets pass on; documented at `RecordDataset`."""

    config: Mapping[str, Any] | None


class LSUNBase(FileDataset):
    """The images of a list file, one per line; items are ``image``, ``relative_file_path_``, ``file_path_``.

    Args:
        size: side in pixels; None keeps the size of the square centre crop.
        interpolation: "bicubic", "bilinear" (or "linear") or "lanczos".
        flip_p: probability of a mirror image; by default 0.5 in training sets and 0 in validation sets.
        txt_file: the list; default that of the data set, in ``<root>/lsun`` or in ``data/lsun`` of the working folder.
        data_root: folder of the images; default that of the data set, in ``<root>/lsun``. ``root`` is
            ``$LDM_DATA_ROOT`` or the user's cache folder.
        options: see `ldm.data.base.RecordDataset`.

    Raises:
        UserError: when the list or its first image is missing, and for an invalid option.
    """

    FIXED_OPTIONS = ("folder", "files", "labels")  # set by this class
    list_name = ""
    folder_name = ""
    training = True

    def __init__(
        self,
        size: int | None = None,
        interpolation: str | None = None,
        flip_p: float | None = None,
        *,
        txt_file: str | os.PathLike[str] | None = None,
        data_root: str | os.PathLike[str] | None = None,
        **options: Unpack[LsunOptions],
    ):
        if flip_p is None:
            flip_p = 0.5 if self.training else 0.0
        self.is_evaluation = not self.training
        # the original code reads data/lsun below the working folder
        home, original = data_folder() / "lsun", Path("data/lsun")
        home = original if original.is_dir() and not home.is_dir() else home
        folder = home / self.folder_name if data_root is None else data_folder(data_root)
        listed = home / self.list_name if txt_file is None else data_folder(txt_file)
        if txt_file is None and data_root is not None:  # the list may be inside or beside the image folder
            near = [place / self.list_name for place in (folder, folder.parent)]
            listed = next((path for path in near if path.is_file()), listed)
        files = self._read_list(listed, folder)
        super().__init__(folder, files, None, size, flip_p, interpolation=interpolation, **options)
        self.source = f"{folder} {listed.name}"

    def _read_list(self, listed: Path, folder: Path) -> Sequence[str]:
        name = type(self).__name__
        how = (
            f"extract LSUN's {self.folder_name} there (github.com/fyu/lsun) and list the images' names, one a line, "
            f"then set data_root and txt_file (or {DATA_ROOT_VARIABLE})"
        )
        try:
            lines = [line.strip() for line in read_text(listed).splitlines()]
        except (OSError, UserError):
            raise UserError(f"{name}: no list of images {listed}; {how}") from None
        files = [line for line in lines if line]
        if not files:
            raise UserError(f"{name}: the list {listed} is empty; {how}")
        if not (folder / files[0]).is_file():
            raise UserError(f"{name}: no image {files[0]}, the first of {listed.name}, in {folder}; {how}")
        return files

    def pixels(self, index: int) -> np.ndarray:
        """The centre square of the image, cropped before resizing as in the original code."""
        image = super().pixels(index)
        side = min(image.shape[:2])
        top, left = ((length - side) // 2 for length in image.shape[:2])
        return image[top : top + side, left : left + side]

    def annotations(self, index: int) -> dict[str, Any]:
        return {"relative_file_path_": self.files[index], "file_path_": str(self.path(index))}


class LSUNChurchesTrain(LSUNBase):
    """Training images of churches."""

    list_name, folder_name = "church_outdoor_train.txt", "churches"


class LSUNChurchesValidation(LSUNBase):
    """Validation images of churches."""

    list_name, folder_name, training = "church_outdoor_val.txt", "churches", False


class LSUNBedroomsTrain(LSUNBase):
    """Training images of bedrooms."""

    list_name, folder_name = "bedrooms_train.txt", "bedrooms"


class LSUNBedroomsValidation(LSUNBase):
    """Validation images of bedrooms."""

    list_name, folder_name, training = "bedrooms_val.txt", "bedrooms", False


class LSUNCatsTrain(LSUNBase):
    """Training images of cats."""

    list_name, folder_name = "cat_train.txt", "cats"


class LSUNCatsValidation(LSUNBase):
    """Validation images of cats."""

    list_name, folder_name, training = "cat_val.txt", "cats", False
