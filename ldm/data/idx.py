"""Reader and base data set for IDX files, the format of MNIST, Fashion-MNIST, KMNIST and EMNIST."""

from __future__ import annotations

import gzip
import io
import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm.data.base import data_root, find_files
from ldm.data.splits import SplitDataset
from ldm.errors import UserError
from ldm.files import require_regular_file
from ldm.samples.array_files import require_plausible

MAX_RANK = 4
DTYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(np.uint8),
    0x09: np.dtype(np.int8),
    0x0B: np.dtype(">i2"),
    0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"),
    0x0E: np.dtype(">f8"),
}


def read_idx(path: str | Path) -> np.ndarray:
    """Return the array in an IDX file, gzipped or not.

    The header is two zero bytes, a type byte, the number of dimensions and big-endian 32-bit sizes. The declared size
    is compared with the file's size before the array is read.

    Raises:
        UserError: when the file is missing, is not IDX, is shorter or longer than its header says, or declares more
            data than an image file of its size can contain.
    """
    path = Path(path)
    try:
        size = require_regular_file(path)
        with path.open("rb") as raw:
            is_packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            return _array(gzip.GzipFile(fileobj=raw) if is_packed else raw, size, path)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); fetch the file again") from error


def _array(stream: io.BufferedIOBase, size: int, path: Path) -> np.ndarray:
    """The array of an unpacked stream; ``size`` is the file's size on disk in bytes."""
    head = stream.read(4)
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] not in DTYPES or head[3] > MAX_RANK:
        raise UserError(f"{path} is not an IDX file (it starts with {head.hex() or 'nothing'}); fetch it again")
    dtype, rank = DTYPES[head[2]], head[3]
    sizes = stream.read(4 * rank)
    if len(sizes) < 4 * rank:
        raise UserError(f"{path} ends inside its header; fetch it again")
    shape = tuple(int(n) for n in np.frombuffer(sizes, ">u4", count=rank))
    start, expected = 4 + 4 * rank, math.prod(shape) * dtype.itemsize
    require_plausible(expected, size, str(path))
    data = stream.read(expected + 1)
    if len(data) != expected:
        found = f"{start + len(data)} bytes" if len(data) < expected else "more bytes"
        raise UserError(f"{path} has {found} where its header {shape} asks for {start + expected}; fetch it again")
    return np.frombuffer(data, dtype).reshape(shape)


def read_pair(prefix: str, folders: Sequence[Path]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return (images uint8 (N, H, W), labels (N,)) of ``{prefix}-images-idx3-ubyte`` and ``-labels-idx1-ubyte``.

    Names with ``.gz`` or with a dot in place of the second hyphen are accepted. None when no folder has both files.
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
    """A data set stored in IDX files; arguments as in `ldm.data.splits.SplitDataset`."""

    num_classes = 10
    inner_folders = ("", "raw", "data")

    def folders(self, root: str | os.PathLike[str] | None) -> list[Path]:
        """Folders to search for the files; torchvision stores them in ``<root>/<class name>/raw``."""
        base, name = data_root(root), self.torchvision_name
        originals = [
            base / outer / f"{name}{part}" / "raw"
            for outer in (f"{name}_Train", f"{name}_Val", "")
            for part in ("Train", "Val", "Base")
        ]
        return [*super().folders(root), *originals]

    def prefix(self, test: bool) -> str:
        """Return the prefix of the names of the train or test files."""
        return "t10k" if test else "train"

    def orient(self, images: np.ndarray) -> np.ndarray:
        """Return stored images in upright orientation."""
        return images

    def wanted(self, test: bool) -> str:
        return f"{self.prefix(test)}-images-idx3-ubyte[.gz] with its labels"

    def load(self, folders: Sequence[Path], test: bool) -> tuple[np.ndarray, np.ndarray] | None:
        pair = read_pair(self.prefix(test), folders)
        return None if pair is None else (self.orient(pair[0]), pair[1])
