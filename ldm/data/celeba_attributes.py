"""CelebA's attribute list, and data sets of image files with attributes, classes made of attributes, or captions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from ldm.data.base import RecordOptions, check_choice, content_digests, digest
from ldm.data.folder import FileDataset
from ldm.errors import UserError, nearest
from ldm.files import read_text

TARGET_TYPES = ("attr", "class", "caption")
SIGNS = {"1": 1, "-1": 0, "0": 0}


class AttributeTable:
    """Table of image attributes.

    Args:
        names: attributes (A,). files: names of the images (N,). values: 0 or 1, uint8 (N, A).
    """

    def __init__(self, names: Sequence[str], files: Sequence[str], values: np.ndarray):
        self.names, self.values = list(names), values
        self.row = {file: number for number, file in enumerate(files)}

    def of(self, files: Sequence[str]) -> np.ndarray:
        """Return the attributes of images, uint8 (len(files), A). Raises UserError for one that is not listed."""
        missing = [file for file in files if file not in self.row]
        if missing:
            raise UserError(f"the attribute list has no image {missing[0]} ({len(missing)} missing); fetch it again")
        return self.values[[self.row[file] for file in files]]

    @classmethod
    def read(cls, path: Path) -> AttributeTable:
        """Read ``list_attr_celeba.txt`` (a count, the names, then lines ``000001.jpg -1 1 ...``), or its .csv form.

        Raises:
            UserError: when a line has invalid values, or their number differs from the number of names.
        """
        try:
            lines = read_text(path).replace(",", " ").splitlines()
        except (OSError, UserError) as error:
            raise UserError(f"{path} cannot be read ({error}); fetch the attribute list again") from None
        if lines and lines[0].strip().isdigit():
            lines = lines[1:]
        names = lines[0].split() if lines else []
        names = names[1:] if names[:1] == ["image_id"] else names
        files, values = [], []
        for line in lines[1:]:
            file, *signs = line.split() or [""]
            if not file:
                continue
            try:
                row = bytes(map(SIGNS.__getitem__, signs))
            except KeyError as error:
                raise UserError(f"{path}: {error.args[0]!r} of {file} is not 1 or -1; fetch it again") from None
            if len(row) != len(names):
                raise UserError(f"{path}: {file} has {len(row)} values for {len(names)} attributes; fetch it again")
            files.append(file)
            values.append(row)
        return cls(names, files, np.frombuffer(b"".join(values), np.uint8).reshape(len(files), len(names)))


class AttributedFiles(FileDataset):
    """Image files with, by ``target_type``: no annotation, all attributes, a class made of some, or a caption.

    Items: ``image`` and, by ``target_type``, ``attr`` (0 or 1, int64 (A,)), ``class_label`` (the sum of attr_j 2^j
    over ``class_attrs``, so that one attribute gives 0 or 1) or ``caption`` (the first line of the image's file).

    Args:
        folder, files: the images, see `ldm.data.folder.FileDataset`.
        target_type: None, "attr", "class" or "caption".
        class_attrs: names of the attributes that make the class.
        attributes: names (A,) and values uint8 (N, A), for "attr" and "class".
        captions: text files (N,), for "caption".
        size, flip_p, options: see `ldm.data.base.RecordDataset`.

    Attributes:
        attribute_names: the names (A,) of the values in ``attr``; empty otherwise.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        target_type: str | None,
        class_attrs: Sequence[str] | None = None,
        attributes: tuple[Sequence[str], np.ndarray] | None = None,
        captions: Sequence[Path] | None = None,
        size: int | None = None,
        flip_p: float = 0.0,
        **options: Unpack[RecordOptions],
    ):
        labels = None
        self._attributes: np.ndarray | None = None
        self.attribute_names: list[str] = []
        if (captions if target_type == "caption" else attributes) is None and target_type is not None:
            raise ValueError(f"target_type={target_type!r} without its values")
        names, values = attributes or ((), np.empty((0, 0), np.uint8))
        if target_type == "attr":
            self.attribute_names, self._attributes = list(names), values.astype(np.int64)
        elif target_type == "class":
            labels = class_labels(type(self).__name__, names, values, class_attrs or ())
            self.num_classes = 2 ** len(class_attrs or ())
        self._captions = list(captions or ()) if target_type == "caption" else None
        super().__init__(folder, files, labels, size, flip_p, **options)

    def annotations(self, index: int) -> dict[str, Any]:
        if self._attributes is not None:
            return {"attr": self._attributes[index].copy()}
        if self._captions is not None:
            return {"caption": first_line(self._captions[index])}
        return super().annotations(index)

    def source_digest(self) -> str:
        texts = content_digests(self._captions or ())
        extra = [] if self._attributes is None else [self._attributes]
        return digest(super().source_digest(), texts, *extra)


def check_targets(name: str, target_type: str | None, class_attrs: Sequence[str] | None) -> None:
    """Raise UserError for an incompatible combination of options of data set ``name``."""
    if target_type is not None:
        check_choice(name, "target_type", target_type, TARGET_TYPES)
    if target_type == "class" and not class_attrs:
        raise UserError(f"{name}: target_type='class' needs the attributes that make it; give class_attrs=[Male]")
    if class_attrs and target_type != "class":
        raise UserError(f"{name}: class_attrs={list(class_attrs)} is used by target_type='class' only; give that too")
    if isinstance(class_attrs, str):
        raise UserError(f"{name}: class_attrs={class_attrs!r} is not a list; give [{class_attrs}]")


def class_labels(name: str, known: Sequence[str], values: np.ndarray, class_attrs: Sequence[str]) -> np.ndarray:
    """Return sum over j of attr_j 2^j for the attributes ``class_attrs``, int64 (N,), from values uint8 (N, A)."""
    for attribute in class_attrs:
        if attribute not in known:
            listed = f"; one of {', '.join(known[:45])}"
            raise UserError(f"{name}: no attribute {attribute!r}{nearest(attribute, known) or listed}")
    columns = values[:, [list(known).index(attribute) for attribute in class_attrs]].astype(np.int64)
    return columns @ (2 ** np.arange(len(class_attrs), dtype=np.int64))


def first_line(path: Path) -> str:
    """Return the first line of a text file, without surrounding whitespace."""
    try:
        with path.open(encoding="utf-8") as stream:
            return stream.readline().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the caption cannot be read ({error}); fetch the captions again") from None
