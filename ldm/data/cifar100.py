"""CIFAR-100: 60,000 colour photographs in 100 classes, 32x32 (Krizhevsky, 2009)."""

from __future__ import annotations

from typing import Unpack

from ldm.data.cifar10 import CifarDataset
from ldm.data.splits import SplitOptions


class CIFAR100Train(CifarDataset):
    """The 50,000 training images of CIFAR-100 (less ``holdout``), 32x32.

    Args:
        coarse: use the 20 superclasses as labels instead of the 100 classes.
        size, flip_p, options: see `ldm.data.splits.SplitDataset`.
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
        **options: Unpack[SplitOptions],
    ):
        self.num_classes = 20 if coarse else 100
        self.label_key = "coarse_labels" if coarse else "fine_labels"
        super().__init__(size, flip_p, **options)


class CIFAR100Val(CIFAR100Train):
    """The 10,000 test images of CIFAR-100, for evaluation.

    ``split="validation"`` (or a ``holdout``) selects ``holdout`` (default 5,000) stratified records of the training
    files instead; to exclude them from training, give `CIFAR100Train` the same ``holdout``.
    """

    default_split = "test"
