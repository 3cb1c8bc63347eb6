"""CelebA-HQ: 30,000 photographs of faces as PNG files, with attributes or captions (Karras et al., 2018).

`scripts/extract_celeba_hq.py` creates the folder: ``images/img%08d.png``, ``train_filenames.pickle`` and
``test_filenames.pickle`` (lists of numbers or names), ``image_list.txt`` (number, name, original CelebA image),
``list_attr_celeba.txt``, and for captions ``celeba-caption/NUMBER.txt``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Unpack

import numpy as np

from ldm.data.base import DATA_ROOT_VARIABLE, RecordOptions, check_choice, data_root, root_or_datadir
from ldm.data.celeba_attributes import AttributedFiles, AttributeTable, check_targets
from ldm.data.formats.plain_pickle import read_pickle
from ldm.errors import UserError
from ldm.files import read_text

SPLITS = ("train", "test", "all")
FOLDERS = ("", "CelebAHQ", "celebahq", "CelebA-HQ")
ATTRIBUTES = "list_attr_celeba.txt"
IMAGE_LIST = ("image_list.txt", "CelebA-HQ-to-CelebA-mapping.txt")
EXTRACT = "python scripts/extract_celeba_hq.py"


class CelebAHQ(AttributedFiles):
    """The faces of CelebA-HQ, each image with its own attributes, class or caption.

    Args:
        datadir, root: folder with the files, or a parent of it; default ``$LDM_DATA_ROOT`` or the user's cache folder.
        split: "train", "test" (the numbers in the two pickles) or "all" (every image of the folder, sorted).
        target_type: None (images only), "attr" (``attr``: 0 or 1 for each attribute of the list), "class"
            (``class_label`` made of ``class_attrs``) or "caption" (``caption``: the first line of its file).
        size: side of the image in pixels; default 256.
        class_attrs: such as [Male], which gives the classes 0 and 1.
        flip_p, options: see `ldm.data.base.RecordDataset`.

    Raises:
        UserError: for an invalid option, for missing files, and for attributes or captions that belong to other
            images.
    """

    FIXED_OPTIONS = ("folder", "files", "labels", "attributes", "captions")  # set by this class
    default_size = 256

    def __init__(
        self,
        datadir: str | os.PathLike[str] | None = None,
        split: str = "train",
        target_type: str | None = None,
        size: int | None = None,
        class_attrs: Sequence[str] | None = None,
        *,
        root: str | os.PathLike[str] | None = None,
        flip_p: float = 0.0,
        **options: Unpack[RecordOptions],
    ):
        name = type(self).__name__
        check_choice(name, "split", split, SPLITS)
        check_targets(name, target_type, class_attrs)
        self.is_evaluation = split != "train"
        folder = find(name, root_or_datadir(name, root, datadir))
        numbers = split_numbers(folder, split)
        attributes = attributes_of(folder, numbers) if target_type in ("attr", "class") else None
        captions = captions_of(folder, numbers) if target_type == "caption" else None
        super().__init__(
            folder / "images",
            [image_name(number) for number in numbers],
            target_type,
            class_attrs,
            attributes,
            captions,
            size,
            flip_p,
            **options,
        )
        self.source, self.rows = "CelebA-HQ", np.array(numbers, dtype=np.int64)


def image_name(number: int) -> str:
    """Return the file name of image ``number`` (0 to 29,999)."""
    return f"img{number:08d}.png"


def find(name: str, root: str | os.PathLike[str] | None) -> Path:
    """Return the folder of the data set."""
    base = data_root(root)
    for folder in (base / inner for inner in FOLDERS):
        if (folder / "images").is_dir():
            return folder
    raise UserError(
        f"{name}: no images/{image_name(0)} in {base} or its CelebAHQ folder; type: {EXTRACT} --root "
        f"{base if root is not None else base / 'CelebAHQ'}, or set root (or {DATA_ROOT_VARIABLE}) to where it is"
    )


def number_of(entry: object) -> int:
    """Return the image number of an entry in a split list: 7, "7", "7.jpg" or "img00000007.png"."""
    match = re.fullmatch(r"(?:img)?(\d+)(?:\.(?:png|jpg))?", str(entry))
    if match is None or isinstance(entry, float):
        raise UserError(f"CelebAHQ: {entry!r} in a split list is neither a number nor an image's name")
    return int(match[1])


def split_numbers(folder: Path, split: str) -> list[int]:
    """Return the image numbers of a split in the order of its list ("all": ascending); every image must exist."""
    present = {entry for entry in os.listdir(folder / "images") if re.fullmatch(r"img\d{8}\.png", entry)}
    if split == "all":
        return sorted(number_of(entry) for entry in present)
    path = folder / f"{split}_filenames.pickle"
    if not path.is_file():
        raise UserError(f"CelebAHQ: no {path.name} in {folder}; type: {EXTRACT}, or give split=all")
    entries = read_pickle(path)
    if not isinstance(entries, list | tuple | np.ndarray):
        raise UserError(f"{path} is not a list of images; type: {EXTRACT}")
    numbers = [number_of(entry) for entry in entries]
    if len(set(numbers)) != len(numbers):
        raise UserError(f"{path} names an image twice; a person would be two records, so make the list again")
    absent = [number for number in numbers if image_name(number) not in present]
    if absent:
        raise UserError(
            f"CelebAHQ: {len(absent)} images of {path.name} are not in {folder / 'images'}, such as "
            f"{image_name(absent[0])}; type: {EXTRACT} again, which goes on where it stopped"
        )
    return numbers


def original_names(folder: Path) -> dict[int, str] | None:
    """Return number -> name in CelebA ("119614.jpg"), or None when the list is missing or names no CelebA image.

    A list written by the extraction maps every image to itself, because the Parquet files do not name the originals.
    """
    path = next((folder / name for name in IMAGE_LIST if (folder / name).is_file()), None)
    if path is None:
        return None
    names, own = {}, True
    for line in read_text(path).splitlines():
        words = line.split()
        if not words or not words[0].isdigit():
            continue
        if len(words) < 3:
            raise UserError(f"{path}: {line!r} has no third column with the image of CelebA; fetch the list again")
        number = int(words[0])
        own &= words[2] == words[0]
        # bare numbers count from 0, file names from 000001.jpg
        names[number] = f"{int(words[2]) + 1:06d}.jpg" if words[2].isdigit() else words[2]
    return None if own else names


def attributes_of(folder: Path, numbers: Sequence[int]) -> tuple[list[str], np.ndarray]:
    """Return attribute names (A,) and the values of images, uint8 (N, A)."""
    path = folder / ATTRIBUTES
    if not path.is_file():
        raise UserError(f"CelebAHQ: no {ATTRIBUTES} in {folder}; type: {EXTRACT}, or put CelebA's list there")
    table = AttributeTable.read(path)
    own = [image_name(number) for number in numbers]
    if any(name in table.row for name in own):  # the list names these images directly
        return table.names, table.of(own)
    names = original_names(folder)
    if names is None:
        raise UserError(
            f"CelebAHQ: {path} is about CelebA's images, but image_list.txt does not say which of them these are; "
            f"type: {EXTRACT} to make both anew, or put the image_list.txt of CelebA-HQ there"
        )
    absent = [number for number in numbers if number not in names]
    if absent:
        raise UserError(f"CelebAHQ: image_list.txt in {folder} has no line for image {absent[0]}; fetch it again")
    return table.names, table.of([names[number] for number in numbers])


def captions_of(folder: Path, numbers: Iterable[int]) -> list[Path]:
    """Return the caption files of images; every file must exist."""
    captions = folder / "celeba-caption"
    if not captions.is_dir():
        raise UserError(
            f"CelebAHQ: no celeba-caption folder in {folder}; put the text files of Multi-Modal-CelebA-HQ there"
        )
    if any((folder / name).is_file() for name in IMAGE_LIST) and original_names(folder) is None:
        raise UserError(
            f"CelebAHQ: the images in {folder} are numbered as they were uploaded, captions as CelebA-HQ numbers its "
            "own; use the images of CelebA-HQ with their image_list.txt"
        )
    present = set(os.listdir(captions))
    files = [f"{number}.txt" for number in numbers]
    absent = [file for file in files if file not in present]
    if absent:
        raise UserError(
            f"CelebAHQ: {len(absent)} captions are not in {captions}, such as {absent[0]}; fetch them again"
        )
    return [captions / file for file in files]
