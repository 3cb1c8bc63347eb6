"""CIFAR-10: 60,000 colour photographs in ten classes, 32x32 (Krizhevsky, 2009)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.base import find_files
from ldm.data.formats.plain_pickle import read_pickle
from ldm.data.splits import SplitDataset
from ldm.errors import UserError

SIDE = 32


class CifarDataset(SplitDataset):
    """A data set in CIFAR's "python version": pickles of pixel rows and labels; arguments as in `SplitDataset`."""

    num_classes: int  # of a subclass
    train_files: Sequence[str] = ()
    test_files: Sequence[str] = ()
    label_key = "labels"

    def wanted(self, test: bool) -> str:
        names = self.test_files if test else self.train_files
        return f"{self.inner_folders[-1]}/{names[0]}"

    def load(self, folders: Sequence[Path], test: bool) -> tuple[np.ndarray, np.ndarray] | None:
        names = self.test_files if test else self.train_files
        found = find_files([[name] for name in names], folders)
        if found is None:
            return None
        parts = [read_batch(path, self.label_key) for path in found]
        images, labels = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        if len(labels) and not 0 <= labels.min() <= labels.max() < self.num_classes:
            raise UserError(f"{found[0]}: labels {labels.min()}..{labels.max()} are not 0..{self.num_classes - 1}")
        return images, labels

    def fetch(self, datasets: Any, root: Path) -> None:
        getattr(datasets, self.torchvision_name)(str(root / self.folder_names[0]), download=True)


class CIFAR10Train(CifarDataset):
    """The 50,000 training images of CIFAR-10 (less ``holdout``), 32x32; arguments as in `SplitDataset`."""

    num_classes = 10
    folder_names = ("CIFAR10", "cifar10")
    inner_folders = ("", "cifar-10-batches-py")
    torchvision_name = "CIFAR10"
    how_to_fetch = "pass download=true (170 MB), or unpack cifar-10-python.tar.gz there"
    train_files = tuple(f"data_batch_{number}" for number in range(1, 6))
    test_files = ("test_batch",)


class CIFAR10Val(CIFAR10Train):
    """The 10,000 test images of CIFAR-10, for evaluation.

    ``split="validation"`` (or a ``holdout``) selects ``holdout`` (default 5,000) stratified records of the training
    files instead; to exclude them from training, give `CIFAR10Train` the same ``holdout``.
    """

    default_split = "test"


def read_batch(path: Path, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return (images uint8 (N, 32, 32, 3), labels int64 (N,)) of one pickle; its rows are three colour planes."""
    batch = read_pickle(path)
    if not isinstance(batch, dict):
        raise UserError(f"{path} is not a CIFAR batch; fetch the file again")
    batch = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    data, labels = batch.get("data"), batch.get(label_key)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3 * SIDE * SIDE,):
        raise UserError(f"{path} has no 'data' of 3072 bytes an image; fetch the file again")
    if labels is None or len(labels) != len(data):
        raise UserError(f"{path} has no {label_key!r} for each of its {len(data)} images; fetch the file again")
    images = data.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), np.asarray(labels, dtype=np.int64)
