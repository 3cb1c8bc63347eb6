"""Tiny data files written on the fly."""

from __future__ import annotations

import gzip
import pickle
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


def numbered_pictures(count: int, side: int = 32, start: int = 0) -> np.ndarray:
    """Colour pictures uint8 (N, side, side, 3): the number in red, a ramp down in green, a ramp across in blue."""
    images = np.zeros((count, side, side, 3), np.uint8)
    images[..., 0] = (start + np.arange(count))[:, None, None]
    images[..., 1] = np.arange(side)[None, :, None]
    images[..., 2] = 100 + np.arange(side)[None, None, :]
    return images


def write_cifar(folder: Path, batches: dict[str, tuple[np.ndarray, dict]], protocol: int = 2) -> None:
    """Write CIFAR's pickles: ``{file name: (images (N, 32, 32, 3), {label key: labels})}``, keys as bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (images, labels) in batches.items():
        rows = np.ascontiguousarray(images.transpose(0, 3, 1, 2)).reshape(len(images), -1)
        content = {b"data": rows, b"batch_label": b"some batch", b"filenames": [b"a.png"] * len(rows)}
        content |= {key.encode(): [int(value) for value in values] for key, values in labels.items()}
        (folder / name).write_bytes(pickle.dumps(content, protocol))
