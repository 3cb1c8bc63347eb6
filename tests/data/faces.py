"""Tiny face sets in the files of CelebA and CelebA-HQ; the number of an image is its red value."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

NAMES = ["Bald", "Male", "Smiling"]


def image(number: int, height: int = 22, width: int = 18) -> np.ndarray:
    """An image uint8 (H, W, 3): the number in red, a ramp down in green, a ramp across in blue."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = number
    image[..., 1] = np.arange(height)[:, None] % 256
    image[..., 2] = np.arange(width)[None, :] % 256
    return image


def attributes_of(number: int) -> list[int]:
    """Attributes 0/1 of a face: the bits of its number."""
    return [number >> bit & 1 for bit in range(len(NAMES))]


def write_attributes(path: Path, files: Sequence[str], values: Sequence[Sequence[int]]) -> None:
    rows = [f"{file} " + " ".join("1" if v else "-1" for v in row) for file, row in zip(files, values, strict=True)]
    path.write_text("\n".join([str(len(files)), " ".join(NAMES) + " ", *rows]) + "\n")


def write_celeba(folder: Path, parts: str = "0000011222", suffix: str = "png") -> None:
    """Write CelebA: image n (from 1) has red value n, its part and the attributes of n."""
    (folder / "img_align_celeba").mkdir(parents=True, exist_ok=True)
    numbers = range(1, len(parts) + 1)
    files = [f"{n:06d}.{suffix}" for n in numbers]
    for number, file in zip(numbers, files, strict=True):
        Image.fromarray(image(number, 218, 178)).save(folder / "img_align_celeba" / file)
    lines = [f"{file} {part}" for file, part in zip(files, parts, strict=True)]
    (folder / "list_eval_partition.txt").write_text("\n".join(lines) + "\n")
    write_attributes(folder / "list_attr_celeba.txt", files, [attributes_of(n) for n in numbers])


def write_celebahq(folder: Path, count: int, train: Sequence[object], test: Sequence[object], side: int = 8) -> None:
    """Write CelebA-HQ images and split lists; image n has red value n and the caption "face n"."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "celeba-caption").mkdir(exist_ok=True)
    for number in range(count):
        Image.fromarray(image(number, side, side)).save(folder / "images" / f"img{number:08d}.png")
        (folder / "celeba-caption" / f"{number}.txt").write_text(f" face {number} \nanother line\n")
    (folder / "train_filenames.pickle").write_bytes(pickle.dumps(list(train)))
    (folder / "test_filenames.pickle").write_bytes(pickle.dumps(list(test)))
