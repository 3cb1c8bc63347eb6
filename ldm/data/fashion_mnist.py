"""Fashion-MNIST: 70,000 images of clothes in MNIST's format (Xiao, Rasul and Vollgraf, 2017)."""

from __future__ import annotations

from ldm.data.idx import IdxDataset


class FashionMNISTTrain(IdxDataset):
    """The 60,000 training images of Fashion-MNIST (less ``holdout``), 28x28; arguments as in `SplitDataset`."""

    folder_names = ("FashionMNIST", "fashion-mnist", "fashion_mnist")
    torchvision_name = "FashionMNIST"
    how_to_fetch = "type `apt-get install dataset-fashion-mnist`, or pass download=true where the network allows it"


class FashionMNISTVal(FashionMNISTTrain):
    """The 10,000 test images of Fashion-MNIST, for evaluation.

    ``split="validation"`` (or a ``holdout``) selects ``holdout`` (default 5,000) stratified records of the training
    files instead; to exclude them from training, give `FashionMNISTTrain` the same ``holdout``.
    """

    default_split = "test"
