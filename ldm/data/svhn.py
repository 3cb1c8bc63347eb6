"""SVHN: house numbers photographed from the street, cropped to single digits, 32x32 (Netzer et al., 2011)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.base import find_files
from ldm.data.splits import SplitDataset
from ldm.errors import UserError
from ldm.files import require_regular_file


class SVHNTrain(SplitDataset):
    """The 73,257 training digits of SVHN (less ``holdout``), 32x32, labels 0-9; arguments as in `SplitDataset`."""

    num_classes = 10
    mirrorable = False
    folder_names = ("SVHN", "svhn", "SVHN_Train", "SVHN_Val")
    torchvision_name = "SVHN"
    how_to_fetch = "pass download=true (182 MB train, 64 MB test), or put the file of the SVHN site there"

    def wanted(self, test: bool) -> str:
        return "test_32x32.mat" if test else "train_32x32.mat"

    def load(self, folders: Sequence[Path], test: bool) -> tuple[np.ndarray, np.ndarray] | None:
        found = find_files([[self.wanted(test)]], folders)
        return None if found is None else read_mat(found[0])

    def fetch(self, datasets: Any, root: Path) -> None:
        datasets.SVHN(str(root / "SVHN"), split="train", download=True)
        datasets.SVHN(str(root / "SVHN"), split="test", download=True)


class SVHNVal(SVHNTrain):
    """The 26,032 test digits of SVHN, for evaluation.

    ``split="validation"`` (or a ``holdout``) selects ``holdout`` (default 5,000) stratified records of the training
    files instead; to exclude them from training, give `SVHNTrain` the same ``holdout``.
    """

    default_split = "test"


def read_mat(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return (images uint8 (N, 32, 32, 3), labels int64 (N,), 0-9) of a Matlab file with X (32, 32, 3, N) and y.

    The file stores the digit 0 as label 10.
    """
    from scipy.io import loadmat

    try:
        require_regular_file(path)
        content = loadmat(str(path), variable_names=["X", "y"])
        images, labels = content["X"], content["y"].reshape(-1).astype(np.int64)
    except Exception as error:  # scipy raises many exception types for a damaged file
        raise UserError(f"{path} cannot be read as SVHN's Matlab file ({error}); fetch the file again") from None
    if images.ndim != 4 or images.shape[2] != 3 or images.dtype != np.uint8 or images.shape[3] != len(labels):
        raise UserError(f"{path} holds {images.dtype} {images.shape} for {len(labels)} labels; fetch the file again")
    if len(labels) and not 1 <= labels.min() <= labels.max() <= 10:
        raise UserError(f"{path}: labels {labels.min()}..{labels.max()} are not SVHN's 1..10; fetch the file again")
    return np.ascontiguousarray(images.transpose(3, 0, 1, 2)), labels % 10
