"""IDX files, the format of MNIST, Fashion-MNIST, KMNIST and EMNIST: their reader and the data sets in them."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ldm.data.base import find_files
from ldm.data.splits import SplitDataset
from ldm.errors import UserError

DTYPES = {
    0x08: np.dtype(np.uint8),
    0x09: np.dtype(np.int8),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}


def read_idx(path: str | Path) -> np.ndarray:
    """Return the array in an IDX file, gzipped or not.

    The header is two zero bytes, a type byte, the number of dimensions and big-endian 32-bit sizes.

    Raises:
        UserError: when the file is missing, is not IDX, or is shorter or longer than its header says.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); fetch the file again") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in DTYPES:
        raise UserError(f"{path} is not an IDX file (it starts with {data[:4].hex() or 'nothing'}); fetch it again")
    dtype, rank = DTYPES[data[2]], data[3]
    start = 4 + 4 * rank
    if len(data) < start:
        raise UserError(f"{path} ends inside its header; fetch it again")
    shape = tuple(int(n) for n in np.frombuffer(data, ">u4", count=rank, offset=4))
    expected = start + math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise UserError(f"{path} has {len(data)} bytes where its header {shape} asks for {expected}; fetch it again")
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


def read_pair(prefix: str, folders: Sequence[Path]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (images uint8 (N, H, W), labels (N,)) of ``{prefix}-images-idx3-ubyte`` and ``-labels-idx1-ubyte``.

    Names with ``.gz`` and with a dot in place of the second hyphen are taken too. None when no folder has both.
    """
    names = []
    for kind in ("images-idx3", "labels-idx1"):
        stem = [f"{prefix}-{kind}-ubyte", f"{prefix}-{kind.replace('-', '.')}-ubyte"]
        names.append(stem + [name + ".gz" for name in stem])
    found = find_files(names, folders)
    if found is None:
        return None
    images, labels = read_idx(found[0]), read_idx(found[1])
    if images.ndim != 3 or images.dtype != np.uint8:
        raise UserError(f"{found[0]} holds {images.dtype} {images.shape}, not uint8 images (N, H, W)")
    if labels.shape != images.shape[:1]:
        raise UserError(f"{found[1]} holds {labels.shape} labels for {len(images)} images; fetch both files again")
    return images, labels


class IdxDataset(SplitDataset):
    """A data set in IDX files; arguments as in `ldm.data.splits.SplitDataset`."""

    num_classes = 10
    inner_folders = ("", "raw", "data")

    def prefix(self, test: bool) -> str:
        """Return how the names of the train or test files begin."""
        return "t10k" if test else "train"

    def orient(self, images: np.ndarray) -> np.ndarray:
        """Return stored images the way round they are to be seen."""
        return images

    def wanted(self, test: bool) -> str:
        return f"{self.prefix(test)}-images-idx3-ubyte[.gz] with its labels"

    def load(self, folders: Sequence[Path], test: bool) -> tuple[np.ndarray, np.ndarray] | None:
        pair = read_pair(self.prefix(test), folders)
        return None if pair is None else (self.orient(pair[0]), pair[1])
