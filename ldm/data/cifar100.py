"""CIFAR-100: 60,000 colour photographs of a hundred kinds of things, 32x32 (Krizhevsky, 2009)."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ldm.data.cifar10 import CifarDataset


class CIFAR100Train(CifarDataset):
    """The 50,000 training images of CIFAR-100 (less ``holdout``), 32x32.

    Args:
        coarse: labels are the 20 groups of five classes instead of the 100 classes.
        size, flip_p, root, split, holdout, channels, framing, interpolation, config, download: see
            `ldm.data.splits.SplitDataset`.
    """

    num_classes = 100
    folder_names = ("CIFAR100", "cifar100")
    inner_folders = ("", "cifar-100-python")
    torchvision_name = "CIFAR100"
    how_to_fetch = "pass download=true (169 MB), or unpack cifar-100-python.tar.gz there"
    train_files = ("train",)
    test_files = ("test",)

    def __init__(
        self,
        size: int | None = None,
        flip_p: float = 0.0,
        *,
        coarse: bool = False,
        root: str | os.PathLike | None = None,
        split: str | None = None,
        holdout: int | None = None,
        channels: int = 3,
        framing: str | None = None,
        interpolation: str | None = None,
        config: Mapping | None = None,
        download: bool = False,
    ):
        self.num_classes = 20 if coarse else 100
        self.label_key = "coarse_labels" if coarse else "fine_labels"
        super().__init__(
            size,
            flip_p,
            root=root,
            split=split,
            holdout=holdout,
            channels=channels,
            framing=framing,
            interpolation=interpolation,
            config=config,
            download=download,
        )


class CIFAR100Val(CIFAR100Train):
    """A validation set: 5,000 stratified images of the training files; ``split="test"`` gives the 10,000 test ones.

    To keep it out of training, give `CIFAR100Train` the same ``holdout``.
    """

    default_split = "validation"
    default_holdout = 5000
