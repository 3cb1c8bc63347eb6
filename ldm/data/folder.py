"""Data sets of image files, and a folder of the user's images with one subfolder per class or without classes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np

from ldm.data.base import RecordDataset, RecordOptions, content_digests, digest, to_path
from ldm.errors import UserError, nearest
from ldm.samples.image_files import all_problems, read_image
from ldm.samples.image_folder import ImageFolderListing, list_images, read_headers, require_one_size


class FileDataset(RecordDataset):
    """A record data set of image files; a subclass finds the files and passes them to the constructor.

    Args:
        folder: folder that the paths in ``files`` are relative to. labels: classes (N,), or None without classes.
        size, flip_p, options: see `ldm.data.base.RecordDataset`.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        labels: np.ndarray | None,
        size: int | None = None,
        flip_p: float = 0.0,
        **options: Unpack[RecordOptions],
    ):
        super().__init__(size, flip_p, **options)
        self.folder = folder
        self.files = list(files)
        self._labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        self.source, self.rows = str(folder), np.arange(len(self.files))

    def __len__(self) -> int:
        return len(self.files)

    def label(self, index: int) -> int:
        if self._labels is None:
            raise UserError(f"{self.folder}: these images have no classes; put each class into a subfolder")
        return int(self._labels[index])

    def path(self, index: int) -> Path:
        """Return the file of record ``index``."""
        return self.folder / self.files[index]

    def pixels(self, index: int) -> np.ndarray:
        try:
            return read_image(self.path(index))
        except UserError as error:
            raise all_problems(error, (self.folder / file for file in self.files)) from None

    def annotations(self, index: int) -> dict[str, Any]:
        return {} if self._labels is None else {"class_label": self.label(index)}

    @property
    def labels(self) -> np.ndarray | None:
        return None if self._labels is None else self._labels.copy()

    def source_digest(self) -> str:
        contents = content_digests([self.folder / name for name in self.files])
        return digest(self.files, contents, *([] if self._labels is None else [self._labels]))


class ImageFolder(FileDataset):
    """The images below a folder, without classes or in subfolders, whose sorted names are the classes 0, 1, ...

    `ldm.samples.image_folder` defines the records and classes of a folder, and `ldm.samples.image_files` decodes the
    images; evaluation and statistics read folders by the same rules.

    Args:
        root: the folder.
        size, flip_p, options: see `ldm.data.base.RecordDataset`; without ``size`` all images must have one size.
        class_names: the publicly declared classes, in the order of their labels. A subfolder outside the list is
            refused, and a class without a subfolder has no images, so the set of classes never depends on the
            private folder.

    Attributes:
        class_names: the subfolders' names, in the order of the labels; empty without classes.

    Raises:
        UserError: for a folder that is missing, has no images, or has images both beside and in subfolders; for
            images of several sizes without ``size``; and for files that are not images, all listed in one message.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        size: int | None = None,
        flip_p: float = 0.0,
        *,
        class_names: Sequence[str] | None = None,
        **options: Unpack[RecordOptions],
    ):
        listing = list_images(to_path(root, "root"))
        names = listing.class_names if class_names is None else [str(name) for name in class_names]
        labels = listing.labels if class_names is None else _declared_labels(listing, names)
        super().__init__(listing.folder, listing.files, labels, size, flip_p, **options)
        headers = read_headers(listing.paths)
        if self.size is None:
            require_one_size(listing.folder, headers, "give size=32 (or the size you need)")
        self.class_names = names
        self.num_classes = len(names) or None


def _declared_labels(listing: ImageFolderListing, names: Sequence[str]) -> np.ndarray:
    """The labels (N,) of a folder's files, the positions of their classes in ``names``. Raises UserError."""
    if len(set(names)) != len(names):
        raise UserError(f"class_names: {', '.join(names)}; a name stands there twice")
    if listing.labels is None:
        raise UserError(f"{listing.folder}: class_names are declared, but the images lie in no subfolders; sort them")
    for name in listing.class_names:
        if name not in names:
            raise UserError(f"{listing.folder}: the subfolder {name!r} is not in class_names{nearest(name, names)}")
    places = np.asarray([names.index(name) for name in listing.class_names], dtype=np.int64)
    return places[listing.labels]
