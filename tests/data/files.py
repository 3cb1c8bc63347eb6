"""Tiny data files written on the fly."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write a uint8 array as an IDX file; gzipped when the name ends in .gz."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_digits(folder: Path, train: int = 40, test: int = 20, prefix: str = "", suffix: str = "") -> None:
    """Write MNIST-shaped train and test files: every picture has its number in pixel (0, 0), labels take turns."""
    names = {"train": train, "t10k": test} if not prefix else {f"{prefix}-train": train, f"{prefix}-test": test}
    for offset, (name, count) in enumerate(names.items()):
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 0, 0] = np.arange(count) + 100 * offset
        images[:, 5:20, 12] = 255
        write_idx(folder / f"{name}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte{suffix}", np.arange(count) % 10)
