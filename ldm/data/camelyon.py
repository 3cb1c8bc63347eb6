"""Camelyon17-WILDS: 96x96 patches of lymph node tissue, with and without tumour (Bandi et al., 2018; Koh et al., 2021).

Read from the files of the wilds package, which need not be installed: a table and a folder of patches.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Unpack

import numpy as np

from ldm.data.base import DATA_ROOT_VARIABLE, RecordOptions, check_choice, data_root
from ldm.data.folder import FileDataset
from ldm.data.splits import HOW_TO_DOWNLOAD
from ldm.errors import UserError
from ldm.files import downloads_allowed, read_text

SPLITS = ("train", "id_val", "val", "test")
HELD_OUT_HOSPITALS = {1: "val", 2: "test"}  # the table's own split column only separates train and id_val
COLUMNS = ("patient", "node", "x_coord", "y_coord", "tumor", "center", "split")
FOLDERS = ("", "camelyon17_v1.0", "camelyon17/camelyon17_v1.0", "camelyon17", "Camelyon17")


class CamelyonTrain(FileDataset):
    """The 302,436 training patches of Camelyon17-WILDS: the middle 32x32 pixels, class 1 where they show tumour.

    Args:
        size: side of the centre crop in pixels, at most 96; the labels describe the central 32x32 pixels.
        flip_p, options: see `ldm.data.base.RecordDataset`; framing "resize" scales
            the whole patch instead.
        root: folder with metadata.csv and patches, or a parent of it; default ``$LDM_DATA_ROOT`` or the user's
            cache folder.
        split: "train" and "id_val" (33,560) from three hospitals, "val" (34,904) from a fourth, "test" (85,054) from
            a fifth.
        download: fetch missing files (10 GB) with the wilds package.

    Raises:
        UserError: for an invalid option, and when the files are missing.
    """

    FIXED_OPTIONS = ("folder", "files", "labels")  # set by this class
    num_classes = 2
    default_split = "train"
    default_size = 32
    default_framing = "crop"

    def __init__(
        self,
        size: int | None = None,
        flip_p: float = 0.0,
        *,
        root: str | os.PathLike[str] | None = None,
        split: str | None = None,
        download: bool = False,
        **options: Unpack[RecordOptions],
    ):
        name = type(self).__name__
        split = self.default_split if split is None else split
        check_choice(name, "split", split, SPLITS)
        self.is_evaluation = split != "train"
        folder = find(name, root, download)
        files, labels, rows = read_metadata(folder / "metadata.csv", split)
        super().__init__(folder, files, labels, size, flip_p, **options)
        self.source, self.rows = "Camelyon17-WILDS", rows


class CamelyonVal(CamelyonTrain):
    """The 85,054 test patches, from a hospital without training patches; arguments as in `CamelyonTrain`."""

    default_split = "test"


def find(name: str, root: str | os.PathLike[str] | None, download: bool) -> Path:
    """Return the folder with metadata.csv and patches."""
    base = data_root(root)
    found = located(base)
    if found is None and (download or downloads_allowed()):
        fetch(name, base / "camelyon17")
        found = located(base)
    if found is None:
        raise UserError(
            f"{name}: no metadata.csv with a patches folder in {base} or its camelyon17 folder; pass download=true "
            f"(10 GB, needs `pip install wilds`), or unpack the archive of wilds' camelyon17_v1.0 there and set root "
            f"(or {DATA_ROOT_VARIABLE}) to it. {HOW_TO_DOWNLOAD}"
        )
    return found


def located(base: Path) -> Path | None:
    """Return the first folder below ``base`` that has metadata.csv and patches, or None."""
    folders = (base / inner for inner in FOLDERS)
    return next((each for each in folders if (each / "metadata.csv").is_file() and (each / "patches").is_dir()), None)


def fetch(name: str, folder: Path) -> None:
    """Download the data set below ``folder`` with the wilds package."""
    try:
        from wilds import get_dataset
    except ImportError:
        raise UserError(f"{name}: download=true needs the wilds package; type: pip install wilds") from None
    try:
        get_dataset(dataset="camelyon17", download=True, root_dir=str(folder))
    except (RuntimeError, OSError) as error:
        raise UserError(f"{name}: download failed ({error}); fetch the archive by hand and set root") from error


def read_metadata(path: Path, split: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return (relative paths, labels int64 (N,), table rows int64 (N,)) of one split."""
    files, labels, rows = [], [], []
    with io.StringIO(read_text(path), newline="") as stream:
        table = csv.DictReader(stream)
        absent = [column for column in COLUMNS if column not in (table.fieldnames or ())]
        if absent:
            raise UserError(f"{path} has no column {absent[0]!r}; fetch the file again")
        for number, row in enumerate(table):
            try:
                part = HELD_OUT_HOSPITALS.get(int(row["center"]), "id_val" if int(row["split"]) else "train")
                if part == split:
                    labels.append(int(row["tumor"]))
                    files.append(patch_file(row))
                    rows.append(number)
            except (TypeError, ValueError):
                raise UserError(f"{path}: line {number + 2} is not a patch's; fetch the file again") from None
    return files, np.array(labels, dtype=np.int64), np.array(rows, dtype=np.int64)


def patch_file(row: Mapping[str, str]) -> str:
    """Return the relative path of a table row's patch; the patient number keeps its leading zeros."""
    slide = f"patient_{row['patient']}_node_{row['node']}"
    return f"patches/{slide}/patch_{slide}_x_{row['x_coord']}_y_{row['y_coord']}.png"
