"""KMNIST: 70,000 handwritten kuzushiji characters in MNIST's format (Clanuwat et al., 2018)."""

from __future__ import annotations

from ldm.data.idx import IdxDataset


class KMNISTTrain(IdxDataset):
    """The 60,000 training characters of KMNIST (less ``holdout``), 28x28; arguments as in `SplitDataset`."""

    mirrorable = False
    folder_names = ("KMNIST", "kmnist")
    torchvision_name = "KMNIST"
    how_to_fetch = "pass download=true where the network allows it, or put the four files of the KMNIST site there"


class KMNISTVal(KMNISTTrain):
    """The 10,000 test characters of KMNIST, for evaluation.

    ``split="validation"`` (or a ``holdout``) selects ``holdout`` (default 5,000) stratified records of the training
    files instead; to exclude them from training, give `KMNISTTrain` the same ``holdout``.
    """

    default_split = "test"
