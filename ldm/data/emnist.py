"""EMNIST: handwritten letters and digits in MNIST's format (Cohen et al., 2017).

The raw files store every image transposed (columns first). These data sets return upright images unless ``upright``
is False, which keeps the raw orientation for models that were trained on it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from ldm.data.base import check_choice, root_or_datadir
from ldm.data.idx import IdxDataset
from ldm.data.splits import HoldoutOptions
from ldm.errors import UserError

CLASSES = {"byclass": 62, "bymerge": 47, "balanced": 47, "letters": 26, "digits": 10, "mnist": 10}


class EMNISTBase(IdxDataset):
    """One of EMNIST's six splits of the characters, here called arrangements.

    Args:
        arrangement: "letters" (26 classes, labels 0-25: the raw files' 1-26 less one), "digits", "mnist",
            "balanced", "bymerge" or "byclass".
        upright: transpose the stored images to upright ones.
        split: "train", "validation" (``holdout`` stratified records of the train files) or "test"; the name of an
            arrangement is accepted too, as in torchvision (``split="letters"``).
        datadir: another name of ``root``.
        train: torchvision's form of split="train" (true) or "test" (false).
        size, flip_p, root, options: see `ldm.data.splits.SplitDataset`.
    """

    mirrorable = False
    default_holdout = 5200
    folder_names = ("EMNIST", "emnist", "EMNIST/raw/gzip", "gzip")
    torchvision_name = "EMNIST"
    how_to_fetch = "unpack the gzip.zip of the EMNIST site there, or pass download=true where the network allows it"

    def __init__(
        self,
        size: int | None = None,
        flip_p: float = 0.0,
        *,
        arrangement: str | None = None,
        upright: bool = True,
        root: str | os.PathLike[str] | None = None,
        datadir: str | os.PathLike[str] | None = None,
        split: str | None = None,
        train: bool | None = None,
        **options: Unpack[HoldoutOptions],
    ):
        if split in CLASSES:
            if arrangement not in (None, split):
                raise UserError(f"EMNIST: split={split!r} and arrangement={arrangement!r} disagree; give one of them")
            arrangement, split = split, None
        if train is not None:
            said = "train" if train else "test"
            if split not in (None, said):
                raise UserError(f"EMNIST: train={train} and split={split!r} disagree; give split only")
            split = said
        self.arrangement = "letters" if arrangement is None else arrangement
        check_choice("EMNIST", "arrangement", self.arrangement, sorted(CLASSES))
        self.is_upright = bool(upright)
        self.num_classes = CLASSES[self.arrangement]
        super().__init__(size, flip_p, root=root_or_datadir("EMNIST", root, datadir), split=split, **options)

    def prefix(self, test: bool) -> str:
        return f"emnist-{self.arrangement}-{'test' if test else 'train'}"

    def relabel(self, labels: np.ndarray) -> np.ndarray:
        shifted = labels.astype(np.int64) - (1 if self.arrangement == "letters" else 0)
        if len(shifted) and not 0 <= shifted.min() <= shifted.max() < self.num_classes:
            raise UserError(
                f"EMNIST: labels {labels.min()}..{labels.max()} do not fit arrangement={self.arrangement!r}"
            )
        return shifted

    def orient(self, images: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(images.transpose(0, 2, 1)) if self.is_upright else images

    def fetch(self, datasets: Any, root: Path) -> None:
        datasets.EMNIST(str(root), split=self.arrangement, download=True)


class EMNISTTrain(EMNISTBase):
    """The 124,800 training letters of EMNIST (less ``holdout``), labels 0-25, upright."""


class EMNISTVal(EMNISTBase):
    """The 20,800 test letters of EMNIST, for evaluation.

    ``split="validation"`` (or a ``holdout``) selects ``holdout`` (default 5,200) stratified records of the training
    files instead; to exclude them from training, give `EMNISTTrain` the same ``holdout``.
    """

    default_split = "test"
