"""Images in Parquet files, the form in which data sets are shared on the Hugging Face hub."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from ldm.data.base import RecordDataset, RecordOptions, digest, to_path
from ldm.data.formats.parquet_rows import class_names, column_names, rows
from ldm.errors import UserError, nearest
from ldm.samples.array_files import require_plausible
from ldm.samples.image_files import decode_bytes

MAX_CLASSES = 2**20  # larger values are not class labels
LABEL_COLUMNS = ("label", "class_label", "labels")


class ParquetImages(RecordDataset):
    """Encoded images (PNG, JPEG) from Parquet files, kept encoded in memory.

    Args:
        path: a file, a folder (all ``*.parquet`` below it, sorted by name), or a list of them.
        size, flip_p, options: see `ldm.data.base.RecordDataset`.
        image_column: the column of images: bytes, or a struct with ``bytes``.
        label_column: the integer column of class labels; None uses ``label``, ``class_label`` or ``labels`` when one
            exists, and otherwise the items have no ``class_label``; "" ignores the labels.

    Raises:
        UserError: without the pyarrow package, for files that are missing or not Parquet, a missing column, and rows
            without an image or a class.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | list[str | os.PathLike[str]] | tuple[str | os.PathLike[str], ...],
        size: int | None = None,
        flip_p: float = 0.0,
        *,
        image_column: str = "image",
        label_column: str | None = None,
        **options: Unpack[RecordOptions],
    ):
        super().__init__(size, flip_p, **options)
        self.files = parquet_files(list(path) if isinstance(path, list | tuple) else [path])
        known = column_names(self.files[0])
        if image_column not in known:
            raise UserError(
                f"ParquetImages: {self.files[0]} has no column {image_column!r}{nearest(image_column, known)}; "
                f"its columns are {', '.join(known)}; give image_column"
            )
        if label_column is None:
            label_column = next((column for column in LABEL_COLUMNS if column in known), "")
        columns = [image_column, label_column] if label_column else [image_column]
        self._blobs: list[np.ndarray] = []
        labels: list[int] = []
        lengths: list[int] = []
        self._firsts: list[int] = []  # index of each file's first record
        for file in self.files:
            self._firsts.append(len(lengths))
            blob, stored = bytearray(), file.stat().st_size
            for row in rows([file], columns):
                require_plausible(len(blob), stored, str(file))
                where = f"ParquetImages: {file}, row {len(lengths) - self._firsts[-1]}"
                content = encoded(row[image_column], f"{where}: column {image_column!r}")
                blob += content
                lengths.append(len(content))
                if label_column:
                    labels.append(class_number(row[label_column], f"{where}: column {label_column!r}"))
            # one array per file, because a list of many small objects would be copied into every loader process
            self._blobs.append(np.frombuffer(bytes(blob), dtype=np.uint8))
        if not lengths:
            raise UserError(f"ParquetImages: no rows in {', '.join(map(str, self.files))}")
        self._lengths = np.asarray(lengths)
        self._ends = np.concatenate([np.cumsum(part) for part in np.split(self._lengths, self._firsts[1:])])
        self._labels = np.asarray(labels, dtype=np.int64) if label_column else None
        self.class_names = class_names(self.files[0], label_column) or [] if label_column else []
        self.num_classes = self._class_count()
        self.source, self.rows = " ".join(map(str, self.files)), np.arange(len(lengths))

    def _class_count(self) -> int | None:
        """The number of class names in the file, or else the largest label plus one. Raises UserError."""
        if self._labels is None:
            return None
        largest = int(self._labels.max())
        known = len(self.class_names) or MAX_CLASSES
        if largest >= known:
            row = int(self._labels.argmax())
            raise UserError(f"{self.files[0]} ...: row {row} has the label {largest}; expected 0 to {known - 1}")
        return len(self.class_names) or largest + 1

    def __len__(self) -> int:
        return len(self._lengths)

    def label(self, index: int) -> int:
        if self._labels is None:
            raise UserError("ParquetImages: these images have no classes; name their column as label_column")
        return int(self._labels[index])

    def pixels(self, index: int) -> np.ndarray:
        part = int(np.searchsorted(self._firsts, index, side="right")) - 1
        # empty files begin at the same record as the next file; the last file with this start contains the record
        end = int(self._ends[index])
        content = self._blobs[part][end - int(self._lengths[index]) : end]
        return decode_bytes(content.tobytes(), f"{self.files[part]}, row {index - self._firsts[part]}")

    def annotations(self, index: int) -> dict[str, Any]:
        return {} if self._labels is None else {"class_label": self.label(index)}

    @property
    def labels(self) -> np.ndarray | None:
        return None if self._labels is None else self._labels.copy()

    def source_digest(self) -> str:
        return digest(*self._blobs, self._lengths, *([] if self._labels is None else [self._labels]))


def parquet_files(paths: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """Return the Parquet files of files and folders, sorted within a folder. Raises UserError when there are none."""
    found: list[Path] = []
    for path in map(to_path, paths):
        inside = sorted(path.rglob("*.parquet")) if path.is_dir() else [path] if path.is_file() else []
        if not inside:
            raise UserError(f"ParquetImages: no Parquet file at {path}; set path to a .parquet file or a folder")
        found += inside
    if not found:
        raise UserError("ParquetImages: path names no file; set it to a .parquet file or a folder of them")
    return found


def encoded(value: Any, where: str) -> bytes:
    """Return the bytes of an image cell. Raises UserError when it has none."""
    content = value.get("bytes") if isinstance(value, Mapping) else value
    if not isinstance(content, bytes) or not content:
        raise UserError(f"{where} holds {type(content).__name__} and no encoded image; name the images' column")
    return content


def class_number(value: Any, where: str) -> int:
    """Return a label cell as an int from 0. Raises UserError for any other value."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise UserError(f"{where} holds {value!r} and no class number from 0; give label_column, or '' for none")
    return value
