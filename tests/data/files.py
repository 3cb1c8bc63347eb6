"""Tiny data files written on the fly."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
from PIL import Image


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write a uint8 array as an IDX file; gzipped when the name ends in .gz."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    data = header + array.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_digits(folder: Path, train: int = 40, test: int = 20, prefix: str = "", suffix: str = "") -> None:
    """Write MNIST-shaped train and test files: every image has its number in pixel (0, 0), labels take turns."""
    names = {"train": train, "t10k": test} if not prefix else {f"{prefix}-train": train, f"{prefix}-test": test}
    for offset, (name, count) in enumerate(names.items()):
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 0, 0] = np.arange(count) + 100 * offset
        images[:, 5:20, 12] = 255
        write_idx(folder / f"{name}-images-idx3-ubyte{suffix}", images)
        write_idx(folder / f"{name}-labels-idx1-ubyte{suffix}", np.arange(count) % 10)


def numbered_images(count: int, side: int = 32, start: int = 0) -> np.ndarray:
    """Colour images uint8 (N, side, side, 3): the number in red, a ramp down in green, a ramp across in blue."""
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


def write_cifar10(folder: Path) -> None:
    """Five train batches of 10 and a test batch of 10: images 0..49 and 50..59; label = number mod 10."""
    names = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    batches = {name: (numbered_images(10, start=10 * n), {"labels": np.arange(10)}) for n, name in enumerate(names)}
    write_cifar(folder, batches)


def write_cifar100(folder: Path) -> None:
    for name, count, start in (("train", 100, 0), ("test", 20, 100)):
        fine = np.arange(count) % 100
        write_cifar(folder, {name: (numbered_images(count, start=start), {"fine_labels": fine,
                                                                            "coarse_labels": fine // 5})})  # fmt: skip


def write_svhn(folder: Path, name: str = "train", count: int = 40, start: int = 0) -> None:
    """SVHN's file: X (32, 32, 3, N), y (N, 1) with 10 for the digit 0; digit = number mod 10."""
    from scipy.io import savemat

    folder.mkdir(parents=True, exist_ok=True)
    digits = np.arange(count) % 10
    labels = np.where(digits == 0, 10, digits).astype(np.uint8)[:, None]
    images = numbered_images(count, start=start).transpose(1, 2, 3, 0)
    savemat(folder / f"{name}_32x32.mat", {"X": images, "y": labels}, do_compression=True)


# hospital, split in the table, tumour; hospitals 1 and 2 are held out whatever the table's split says
PATCHES = [(0, 0, 1), (2, 0, 0), (3, 1, 1), (1, 0, 0), (4, 0, 0), (2, 1, 1), (0, 1, 0), (3, 0, 1)]


def write_camelyon(folder: Path) -> None:
    """Patch n: red n, green and blue the row and column; an alpha channel as in the original."""
    lines = [",patient,node,x_coord,y_coord,tumor,slide,center,split"]
    for number, (center, split, tumor) in enumerate(PATCHES):
        patient, node, x, y = f"{center:03d}", number % 3, 3000 + number, 4000
        slide = folder / "patches" / f"patient_{patient}_node_{node}"
        slide.mkdir(parents=True, exist_ok=True)
        image = np.full((96, 96, 4), 255, np.uint8)
        image[..., 0] = number
        image[..., 1], image[..., 2] = np.arange(96)[:, None], np.arange(96)[None, :]
        Image.fromarray(image).save(slide / f"patch_patient_{patient}_node_{node}_x_{x}_y_{y}.png")
        lines.append(f"{number},{patient},{node},{x},{y},{tumor},{number},{center},{split}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
