"""Sets in memory that come as train files and test files, with a validation part cut from the train files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.base import (
    DATA_ROOT_VARIABLE,
    ArrayDataset,
    check_choice,
    data_root,
    stratified_split,
    system_data_dirs,
)
from ldm.errors import UserError

SPLITS = ("train", "validation", "test")


class SplitDataset(ArrayDataset):
    """A set with train files and test files; a new one states the class attributes, ``load`` and ``wanted``.

    Args:
        size, flip_p, channels, framing, interpolation, config: see `ldm.data.base.RecordDataset`.
        root: folder with the files, or a parent of it; default ``$LDM_DATA_ROOT`` or the user's cache folder.
        split: "train" (train files without the held-out part), "validation" (the held-out part) or "test".
        holdout: records of the train files that are set aside for validation, a fixed stratified choice. 0 trains
            on all of them; a validation set that is to be disjoint needs the same number on both sides.
        download: fetch missing files by torchvision.

    Raises:
        UserError: on a value outside these, and when the files are not there (where to put them, and how).
    """

    default_split = "train"
    default_holdout = 0
    folder_names: Sequence[str] = ()  # below the root; the first is named in messages
    inner_folders: Sequence[str] = ("",)
    torchvision_name = ""
    how_to_fetch = ""

    def __init__(
        self,
        size: int | None = None,
        flip_p: float = 0.0,
        *,
        root: str | os.PathLike | None = None,
        split: str | None = None,
        holdout: int | None = None,
        channels: int = 3,
        framing: str | None = None,
        interpolation: str | None = None,
        config: Mapping | None = None,
        download: bool = False,
    ):
        split = self.default_split if split is None else split
        holdout = self.default_holdout if holdout is None else int(holdout)
        check_choice(type(self).__name__, "split", split, SPLITS)
        if split != "train" and flip_p > 0:
            raise UserError(f"{type(self).__name__}: flip_p={flip_p} in an evaluation set; give flip_p=0")
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
            channels=channels,
            framing=framing,
            interpolation=interpolation,
            config=config,
            source=f"{self.torchvision_name} {'test' if split == 'test' else 'train'}",
            rows=rows,
        )

    def load(self, folders: Sequence[Path], test: bool) -> tuple[np.ndarray, np.ndarray] | None:
        """Return (images uint8 (N, H, W[, 3]), raw labels (N,)) of the train or test files, or None without them."""
        raise NotImplementedError

    def wanted(self, test: bool) -> str:
        """Return the names of the train or test files, for a message."""
        raise NotImplementedError

    def relabel(self, labels: np.ndarray) -> np.ndarray:
        """Return labels 0..num_classes-1 from stored ones."""
        return labels

    def fetch(self, datasets: Any, root: Path) -> None:
        """Download the files below ``root`` with a class of ``torchvision.datasets``."""
        getattr(datasets, self.torchvision_name)(str(root), download=True)

    def folders(self, root: str | os.PathLike | None) -> list[Path]:
        """Return where the files are looked for, best first."""
        base = data_root(root)
        folders = [base / outer / inner for outer in ("", *self.folder_names) for inner in self.inner_folders]
        if root is None:
            folders += [place / "datasets" / name for place in system_data_dirs() for name in self.folder_names]
        return folders

    def _read(self, root: str | os.PathLike | None, test: bool, download: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return all images and raw labels of the train or test files."""
        name, folders = type(self).__name__, self.folders(root)
        found = self.load(folders, test)
        if found is None and download:
            import torchvision.datasets

            try:
                self.fetch(torchvision.datasets, data_root(root))
            except (RuntimeError, OSError, ImportError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise UserError(f"{name}: download failed ({reason}); {self.how_to_fetch} and set root") from error
            found = self.load(folders, test)
        if found is None:
            raise UserError(
                f"{name}: no {self.wanted(test)} in {data_root(root)} or its {self.folder_names[0]} folder; "
                f"{self.how_to_fetch}, then set root (or {DATA_ROOT_VARIABLE}) to it"
            )
        return found
