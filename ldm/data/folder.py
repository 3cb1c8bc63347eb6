"""Images that lie in files: a folder of one's own, with a subfolder for each class or without classes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.data.base import RecordDataset, digest, file_stamp
from ldm.errors import UserError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
GREY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "F"})


class FileDataset(RecordDataset):
    """A record data set of image files; a new one finds the files and hands them over.

    Args:
        folder: where ``files``, relative paths, begin. labels: classes (N,), or None: items have no ``class_label``.
        size, flip_p, channels, framing, interpolation, config: see `ldm.data.base.RecordDataset`.
    """

    def __init__(
        self,
        folder: Path,
        files: Sequence[str],
        labels: np.ndarray | None,
        size: int | None = None,
        flip_p: float = 0.0,
        *,
        channels: int = 3,
        framing: str | None = None,
        interpolation: str | None = None,
        config: Mapping | None = None,
    ):
        super().__init__(size, flip_p, channels=channels, framing=framing, interpolation=interpolation, config=config)
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
        return read_image(self.path(index))

    def annotations(self, index: int) -> dict:
        return {} if self._labels is None else {"class_label": self.label(index)}

    @property
    def labels(self) -> np.ndarray | None:
        return None if self._labels is None else self._labels.copy()

    def source_digest(self) -> str:
        stamps = [(name, *file_stamp(self.folder / name)[1:]) for name in self.files]
        return digest(stamps, *([] if self._labels is None else [self._labels]))


class ImageFolder(FileDataset):
    """The images below a folder: in subfolders, whose sorted names are the classes 0, 1, ..., or without classes.

    Args:
        root: the folder.
        size, flip_p, channels, framing, interpolation, config: see `ldm.data.base.RecordDataset`.

    Attributes:
        class_names: the subfolders' names, in the order of the labels; empty without classes.

    Raises:
        UserError: for a folder that is missing, has no images, or has images both beside and in subfolders.
    """

    def __init__(
        self,
        root: str | os.PathLike,
        size: int | None = None,
        flip_p: float = 0.0,
        *,
        channels: int = 3,
        framing: str | None = None,
        interpolation: str | None = None,
        config: Mapping | None = None,
    ):
        folder = Path(os.path.expandvars(root)).expanduser()
        if not folder.is_dir():
            raise UserError(f"ImageFolder: there is no folder {folder}; set root to the folder with your images")
        flat = images_in(folder)
        classes = {entry.name: images_in(entry, deep=True) for entry in sorted(folder.iterdir()) if entry.is_dir()}
        classes = {name: found for name, found in classes.items() if found}
        if flat and classes:
            raise UserError(
                f"ImageFolder: {folder} has images both beside and in subfolders ({flat[0]}, {next(iter(classes))}); "
                "put all of them into subfolders, one a class, or none"
            )
        if not flat and not classes:
            known = " ".join(sorted(IMAGE_SUFFIXES))
            raise UserError(f"ImageFolder: no images in {folder} or its subfolders; it looks for {known}")
        self.class_names = list(classes)
        files = flat or [f"{name}/{file}" for name, found in classes.items() for file in found]
        labels = np.repeat(np.arange(len(classes)), [len(found) for found in classes.values()]) if classes else None
        super().__init__(
            folder,
            files,
            labels,
            size,
            flip_p,
            channels=channels,
            framing=framing,
            interpolation=interpolation,
            config=config,
        )
        self.num_classes = len(classes) or None


def images_in(folder: Path, *, deep: bool = False) -> list[str]:
    """Return the image files of a folder, sorted, as relative paths with "/"; ``deep`` goes into its subfolders."""
    if not deep:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if _is_image(entry.name) and entry.is_file())
    found = folder.rglob("*")
    return sorted(path.relative_to(folder).as_posix() for path in found if _is_image(path.name) and path.is_file())


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith(".")


def read_image(path: str | os.PathLike) -> np.ndarray:
    """Return an image file as uint8: (H, W) when it is grey, else (H, W, 3). Raises UserError, naming the file."""
    try:
        with Image.open(path) as image:
            return decoded(image)
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such image; check the folder") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}: cannot be read as an image ({reason}); remove it or fetch it again") from None


def decoded(image: Image.Image) -> np.ndarray:
    """Return an opened image as uint8: (H, W) when it is grey, else (H, W, 3)."""
    return np.asarray(image.convert("L" if image.mode in GREY_MODES else "RGB"))
