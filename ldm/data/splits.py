"""Data sets in memory with train and test files; the validation split is held out from the train files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from ldm.data.base import (
    DATA_ROOT_VARIABLE,
    ArrayDataset,
    RecordOptions,
    check_choice,
    data_root,
    stratified_split,
    system_data_dirs,
    whole_number,
)
from ldm.errors import UserError, first_line
from ldm.files import downloads_allowed

HOW_TO_DOWNLOAD = (
    "To download: --download behind main.py and the evaluation commands, download: true under the set's params in YAML"
)
SPLITS = ("train", "validation", "test")


class HoldoutOptions(RecordOptions, total=False):
    """The options of `SplitOptions` that no data set changes."""

    holdout: int | None
    download: bool


class SplitOptions(HoldoutOptions, total=False):
    """Options that data sets with train and test files pass to `SplitDataset`; documented there."""

    root: str | os.PathLike[str] | None
    split: str | None


class SplitDataset(ArrayDataset):
    """A data set with train and test files; a subclass defines the class attributes, ``load`` and ``wanted``.

    Args:
        size, flip_p, options: see `ldm.data.base.RecordDataset`.
        root: folder with the files, or a parent of it; default ``$LDM_DATA_ROOT`` or the user's cache folder.
        split: "train" (train files without the held-out part), "validation" (the held-out part of the train files)
            or "test". A class named ...Val is the test set unless it is given a split or a holdout.
        holdout: number of records of the train files held out for validation, a fixed stratified choice. 0 trains
            on all of them; the training and validation sets are disjoint only if both use the same number.
        download: fetch missing files with torchvision.

    Attributes:
        split: "train", "validation" or "test". source: the files the records come from, "MNIST train" or "MNIST test".

    Raises:
        UserError: for an invalid option, and, with instructions, when the files are missing.
    """

    FIXED_OPTIONS = ("images", "labels", "source", "rows")  # set by this class
    default_split = "train"
    default_holdout = 5000  # size of the validation split
    folder_names: Sequence[str] = ()  # below the root; messages name the first
    inner_folders: Sequence[str] = ("",)
    torchvision_name = ""
    how_to_fetch = ""

    def __init__(
        self,
        size: int | None = None,
        flip_p: float = 0.0,
        *,
        root: str | os.PathLike[str] | None = None,
        split: str | None = None,
        holdout: int | None = None,
        download: bool = False,
        **options: Unpack[RecordOptions],
    ):
        name = type(self).__name__
        if split is None:  # a holdout refers to the train files
            split = "validation" if holdout is not None and self.default_split == "test" else self.default_split
        check_choice(name, "split", split, SPLITS)
        holdout = self._holdout(split, holdout)
        self.split = split
        self.is_evaluation = split != "train"
        images, labels = self._read(root, split == "test", download)
        rows = np.arange(len(images))
        if split != "test":
            kept, held_out = stratified_split(labels, holdout)
            rows = kept if split == "train" else held_out
        super().__init__(
            images if len(rows) == len(images) else images[rows],
            self.relabel(labels[rows]),
            size,
            flip_p,
            source=f"{self.torchvision_name} {'test' if split == 'test' else 'train'}",
            rows=rows,
            **options,
        )

    def _holdout(self, split: str, holdout: int | None) -> int:
        """Return the number of held-out records of the train files. Raises UserError for an invalid number."""
        name = type(self).__name__
        if holdout is None:
            return self.default_holdout if split == "validation" else 0
        if split == "test":
            raise UserError(f"{name}: holdout={holdout} is a part of the train files, but split='test'; leave it out")
        return whole_number(name, "holdout", holdout)

    def load(self, folders: Sequence[Path], test: bool) -> tuple[np.ndarray, np.ndarray] | None:
        """Return (images uint8 (N, H, W[, 3]), raw labels (N,)) of the train or test files, or None without them."""
        raise NotImplementedError

    def wanted(self, test: bool) -> str:
        """Return the names of the train or test files, for a message."""
        raise NotImplementedError

    def relabel(self, labels: np.ndarray) -> np.ndarray:
        """Map stored labels to 0..num_classes-1."""
        return labels

    def fetch(self, datasets: Any, root: Path) -> None:
        """Download the files below ``root`` with a class of ``torchvision.datasets``."""
        getattr(datasets, self.torchvision_name)(str(root), download=True)

    def folders(self, root: str | os.PathLike[str] | None) -> list[Path]:
        """Return the folders to search for the files, in order of preference."""
        base = data_root(root)
        name = self.torchvision_name  # the original code used <cache>/MNIST_Train and the like
        names = ("", *self.folder_names, f"{name}_Train/{name}", f"{name}_Train", f"{name}_Val/{name}", f"{name}_Val")
        folders = [base / outer / inner for outer in names for inner in self.inner_folders]
        if root is None:
            folders += [Path("data") / outer / inner for outer in names for inner in self.inner_folders]
            folders += [place / "datasets" / name for place in system_data_dirs() for name in self.folder_names]
        return folders

    def _read(self, root: str | os.PathLike[str] | None, test: bool, download: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return all images and raw labels of the train or test files."""
        name, folders = type(self).__name__, self.folders(root)
        found = self.load(folders, test)
        if found is None and (download or downloads_allowed()):
            import torchvision.datasets

            try:
                self.fetch(torchvision.datasets, data_root(root))
            except (RuntimeError, OSError, ImportError) as error:
                raise UserError(
                    f"{name}: download failed ({first_line(error)}); {self.how_to_fetch} and set root"
                ) from error
            found = self.load(folders, test)
        if found is None:
            raise UserError(
                f"{name}: no {self.wanted(test)} in {data_root(root)} or its {self.folder_names[0]} folder; "
                f"{self.how_to_fetch}, then set root (or {DATA_ROOT_VARIABLE}) to it"
                + ("" if download or downloads_allowed() else f". {HOW_TO_DOWNLOAD}")
            )
        return found
