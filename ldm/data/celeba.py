"""CelebA: 202,599 aligned photographs of faces, 178 x 218, with 40 attributes each (Liu et al., 2015)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, Unpack

import numpy as np

from ldm.data.base import DATA_ROOT_VARIABLE, RecordOptions, check_choice, data_root
from ldm.data.celeba_attributes import AttributedFiles, AttributeTable, check_targets
from ldm.data.splits import HOW_TO_DOWNLOAD
from ldm.errors import UserError, first_line
from ldm.files import downloads_allowed, read_text

PARTS = {"train": 0, "validation": 1, "valid": 1, "test": 2, "all": None}
ORIGINALS = ("CelebA_Train/celeba", "CelebA_Val/celeba", "CelebA_Validation/celeba")  # the original code's folders
FOLDERS = ("", "celeba", "CelebA/celeba", "CelebA", *ORIGINALS)
IMAGES = ("img_align_celeba", "img_align_celeba/img_align_celeba")  # the second is the layout of Kaggle's archive
PARTITION = ("list_eval_partition.txt", "list_eval_partition.csv")
ATTRIBUTES = ("list_attr_celeba.txt", "list_attr_celeba.csv")


class CelebATrain(AttributedFiles):
    """The 162,770 training faces of CelebA, without labels unless asked for.

    Args:
        size: the shorter side is resized to ``size`` (bilinear), then the centre is cropped, as in torchvision.
        flip_p, options: see `ldm.data.base.RecordDataset`.
        root: folder with img_align_celeba and list_eval_partition.txt, or a parent of it; default
            ``$LDM_DATA_ROOT`` or the user's cache folder.
        split: "train", "validation" (19,867 faces), "test" (19,962) or "all".
        target_type: None (images only), "attr" (``attr``: 0 or 1 for each of the 40) or "class" (``class_label``
            made of ``class_attrs``), see `ldm.data.celeba_attributes.AttributedFiles`.
        class_attrs: such as [Male], which gives the classes 0 and 1.
        download: fetch missing files with torchvision (from Google Drive, whose quota is often exhausted).

    Raises:
        UserError: for an invalid option, and when the files are missing.
    """

    FIXED_OPTIONS = ("folder", "files", "labels", "attributes", "captions")  # set by this class
    default_split = "train"
    default_interpolation = "bilinear"

    def __init__(
        self,
        size: int | None = None,
        flip_p: float = 0.0,
        *,
        root: str | os.PathLike[str] | None = None,
        split: str | None = None,
        target_type: str | None = None,
        class_attrs: Sequence[str] | None = None,
        download: bool = False,
        **options: Unpack[RecordOptions],
    ):
        name = type(self).__name__
        split = self.default_split if split is None else split
        check_choice(name, "split", split, PARTS)
        if target_type == "caption":
            raise UserError(f"{name}: CelebA has no captions; ldm.data.celebahq.CelebAHQ has")
        check_targets(name, target_type, class_attrs)
        self.is_evaluation = split not in ("train", "all")
        lists, images = find(name, root, download)
        files = partition(lists, PARTS[split])
        attributes = None
        if target_type is not None:
            table = AttributeTable.read(first(lists, ATTRIBUTES) or missing(name, lists, ATTRIBUTES[0]))
            attributes = (table.names, table.of(files))
        super().__init__(
            images,
            files,
            target_type,
            class_attrs,
            attributes,
            size=size,
            flip_p=flip_p,
            **options,
        )
        self.source, self.rows = "CelebA", np.array([number_of(file) for file in files], dtype=np.int64)


class CelebAValidation(CelebATrain):
    """The 19,867 validation faces of CelebA; arguments as in `CelebATrain`."""

    default_split = "validation"


class CelebATest(CelebATrain):
    """The 19,962 test faces of CelebA; arguments as in `CelebATrain`."""

    default_split = "test"


def find(name: str, root: str | os.PathLike[str] | None, download: bool) -> tuple[Path, Path]:
    """Return the folder with the lists and the folder with the images."""
    base = data_root(root)
    found = located(base)
    if None in found and (download or downloads_allowed()):
        fetch(name, base)
        found = located(base)
    lists, images = found
    if lists is None:
        missing(name, base, f"img_align_celeba/ and {PARTITION[0]}")
    if images is None:
        missing(name, lists, "img_align_celeba/ with the images (unpack img_align_celeba.zip)")
    return lists, images


def located(base: Path) -> tuple[Path | None, Path | None]:
    """Return the folders of the lists and of the images below ``base``; None for a missing one."""
    lists = next((base / inner for inner in FOLDERS if first(base / inner, PARTITION) is not None), None)
    if lists is None:
        return None, None
    return lists, next((lists / inner for inner in reversed(IMAGES) if (lists / inner).is_dir()), None)


def missing(name: str, folder: Path, what: str) -> NoReturn:
    """Raise a UserError that names the missing files, their expected folder and where to get them."""
    raise UserError(
        f"{name}: no {what} in {folder} or its CelebA folder; unpack the aligned images and lists of the CelebA site "
        f"there, or pass download=true (needs `pip install gdown`), then set root (or {DATA_ROOT_VARIABLE}) to it. "
        f"{HOW_TO_DOWNLOAD}"
    )


def fetch(name: str, base: Path) -> None:
    """Download CelebA into ``base/CelebA/celeba`` with torchvision."""
    import torchvision.datasets

    try:
        torchvision.datasets.CelebA(str(base / "CelebA"), target_type=[], download=True)
    except Exception as error:  # gdown raises its own exception types
        raise UserError(
            f"{name}: download failed ({first_line(error)}); Google Drive often refuses, so fetch the files by hand "
            "and set root"
        ) from error


def first(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the path of the first name that exists in a folder, or None."""
    return next((folder / name for name in names if (folder / name).is_file()), None)


def partition(lists: Path, part: int | None) -> list[str]:
    """Return the image names of part 0 (train), 1 (validation) or 2 (test), None for all, in the list's order."""
    path = first(lists, PARTITION) or lists / PARTITION[0]
    files = []
    for line in read_text(path).splitlines():
        words = line.replace(",", " ").split()
        if not words or words[0] == "image_id":
            continue
        if len(words) != 2 or words[1] not in ("0", "1", "2"):
            raise UserError(f"{path}: {line!r} is not an image and a part 0, 1 or 2; fetch the file again")
        if part is None or int(words[1]) == part:
            files.append(words[0])
    return files


def number_of(file: str) -> int:
    """Return the number in an image's file name, 1 for 000001.jpg."""
    digits = "".join(c for c in file.rsplit(".", 1)[0] if c.isdigit())
    if not digits:
        raise UserError(f"CelebA: the image name {file!r} has no number; fetch the lists again")
    return int(digits)
