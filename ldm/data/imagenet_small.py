"""ImageNet down-sampled to 32x32 and 64x64 (Chrabaszcz, Loshchilov and Hutter, 2017), in its public batch files.

Classes follow the authors' list (map_clsloc.txt), whose order differs from that of the sorted synsets.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Unpack

import numpy as np

from ldm.data.base import DATA_ROOT_VARIABLE, RecordDataset, RecordOptions, content_digests, data_root, digest
from ldm.data.formats.plain_pickle import read_pickle
from ldm.errors import UserError, first_line
from ldm.samples.array_files import NpzArchive

FORMS = ("", ".npz", ".pkl", ".pickle")
CLASSES = 1000
HOW_TO_FETCH = "download the 'Downsampled image data' of image-net.org (log in, ILSVRC resources) and unpack it there"


class SmallImageNet(RecordDataset):
    """Images from batch files, held in memory: 3.9 GB for 32x32, 16 GB for 64x64.

    Args:
        size, flip_p, options: see `ldm.data.base.RecordDataset`.
        root: folder with the batch files, or a parent of it; default ``$LDM_DATA_ROOT`` or the user's cache folder.
        batches: numbers of the training files to use, such as [1, 2]; default all ten.

    Raises:
        UserError: when files are missing, have another format, or hold images of another size.
    """

    num_classes = CLASSES
    side = 0
    training = True

    def __init__(
        self,
        size: int | None = None,
        flip_p: float = 0.0,
        *,
        root: str | os.PathLike[str] | None = None,
        batches: Sequence[int] | None = None,
        **options: Unpack[RecordOptions],
    ):
        self.is_evaluation = not self.training
        super().__init__(size, flip_p, **options)
        name = type(self).__name__
        if batches is not None and (not self.training or not batches or not set(batches) <= set(range(1, 11))):
            raise UserError(f"{name}: batches={batches}; training files are numbered 1 to 10")
        numbers = range(1, 11) if batches is None else batches
        names = [f"train_data_batch_{number}" for number in numbers] if self.training else ["val_data"]
        self.files = self._find(root, names)
        parts = [read_batch(path, self.side) for path in self.files]
        self._parts = [pixels for pixels, _ in parts]
        self._ends = np.cumsum([len(pixels) for pixels in self._parts])
        self._labels = np.concatenate([labels for _, labels in parts])
        if self._labels.min() > 0:  # the original files count from 1, some repackaged ones from 0
            self._labels -= 1
        if not 0 <= self._labels.min() <= self._labels.max() < CLASSES:
            raise UserError(f"{name}: labels go from {self._labels.min()} to {self._labels.max()}; expected 1 to 1000")
        self.source, self.rows = f"ImageNet{self.side} {names}", np.arange(len(self._labels))

    def _find(self, root: str | os.PathLike[str] | None, names: Sequence[str]) -> list[Path]:
        base, side = data_root(root), self.side
        kind = "train" if self.training else "val"
        folders = [
            base / outer / inner
            for outer in (f"ImageNet{side}", f"imagenet{side}", f"Imagenet{side}", "")
            for inner in (f"Imagenet{side}_{kind}", f"Imagenet{side}_{kind}_npz", "")
        ]
        best: list[Path | None] = [None] * len(names)
        for folder in folders:
            found = [next((p for f in FORMS if (p := folder / f"{name}{f}").is_file()), None) for name in names]
            if sum(path is not None for path in found) > sum(path is not None for path in best):
                best = found
        missing = [name for name, path in zip(names, best, strict=True) if path is None]
        if missing:
            raise UserError(
                f"{type(self).__name__}: no {missing[0]} (or .npz; {len(missing)} of {len(names)} files missing) "
                f"in {base} or its ImageNet{side} folder; {HOW_TO_FETCH}, then set root (or {DATA_ROOT_VARIABLE}) to it"
            )
        return [path for path in best if path is not None]

    def __len__(self) -> int:
        return len(self._labels)

    def label(self, index: int) -> int:
        return int(self._labels[index])

    def pixels(self, index: int) -> np.ndarray:
        part = int(np.searchsorted(self._ends, index, side="right"))
        row = self._parts[part][index - self._ends[part]]
        return np.ascontiguousarray(row.reshape(3, self.side, self.side).transpose(1, 2, 0))

    @property
    def labels(self) -> np.ndarray:
        return self._labels.copy()

    def source_digest(self) -> str:
        return digest(content_digests(self.files), self._labels)


class ImageNet32Train(SmallImageNet):
    """The 1,281,167 training images at 32x32."""

    side = 32


class ImageNet32Validation(SmallImageNet):
    """The 50,000 validation images at 32x32."""

    side = 32
    training = False


class ImageNet64Train(SmallImageNet):
    """The 1,281,167 training images at 64x64."""

    side = 64


class ImageNet64Validation(SmallImageNet):
    """The 50,000 validation images at 64x64."""

    side = 64
    training = False


def read_batch(path: Path, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (pixels uint8 (n, 3 * side * side), one colour plane after the other; labels int64 (n,)) of a file.

    No code in a pickle is executed. Raises UserError for a file of another format.
    """
    try:
        if path.suffix == ".npz":
            archive = NpzArchive(path)
            data, labels = archive.array("data"), archive.array("labels")
        else:
            content = read_pickle(path)
            data, labels = np.asarray(content["data"]), content["labels"]
        labels = np.asarray(labels, dtype=np.int64).reshape(-1)
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    except Exception as error:  # a damaged file can raise any exception
        raise UserError(f"{path}: not a batch of 'data' and 'labels' ({first_line(error)}); fetch it again") from None
    if data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * side**2 or len(data) != len(labels):
        raise UserError(
            f"{path}: {data.dtype} {data.shape} with {len(labels)} labels; expected rows of 3 x {side} x {side} bytes"
        )
    return data, labels
