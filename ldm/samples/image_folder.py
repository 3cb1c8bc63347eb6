"""Records and classes of a folder of images. Training, evaluation and statistics use the same rules.

- Images directly in the folder have no classes. With subfolders, each subfolder is a class, numbered by its name in
  sorted order; images in deeper folders are included. A folder with both is refused.
- A subfolder without images is a class without images and keeps its number, so that two folders with the same
  subfolders have the same labels.
- Names that begin with a dot, folders that programs create beside images (``@eaDir``, ``__MACOSX``, thumbnails, ...),
  thumbnails of another file in the same folder, links, and hard links to another file are not records, because one
  person's image would become two records or a class of its own. The log lists the skipped files.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ldm.errors import UserError
from ldm.samples.dicom_files import HOW_TO_INSTALL, SUFFIX, can_read
from ldm.samples.image_files import IMAGE_SUFFIXES, ImageHeader, all_problems, read_header

logger = logging.getLogger(__name__)

#: Folders created by file managers, storage systems and editors; compared case-insensitively.
HOUSEKEEPING = frozenset(
    {
        "@eadir",
        "@recently-snapshot",
        "@recycle",
        "@sharebin",
        "@tmp",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "__macosx",
        "__pycache__",
        "found.000",
        "lost+found",
        "network trash folder",
        "recycler",
        "system volume information",
        "temporary items",
        "thumbnail",
        "thumbnails",
        "thumbs",
        "_thumbs",
        "_thumbnails",
    }
)
THUMBNAIL = re.compile(r"(?:thumb|thumbnail|tn)[-_. ](?P<after>.+)|(?P<before>.+)[-_. ](?:thumb|thumbnail|tn)", re.I)
LISTED = 50  # maximum number of skipped files named in the log


@dataclass(frozen=True)
class ImageFolderListing:
    """The records of a folder.

    files: (N,) paths below ``folder``, "/"-separated, sorted within each class. labels: (N,) int64, or None without
    classes. class_names: the subfolders, in the order of the labels. skipped: (path below the folder, why).
    """

    folder: Path
    files: list[str]
    labels: np.ndarray | None
    class_names: list[str]
    skipped: list[tuple[str, str]] = field(default_factory=list)

    @property
    def paths(self) -> list[Path]:
        """The full paths of the files."""
        return [self.folder / file for file in self.files]

    def summary(self) -> str:
        """One line with the numbers of images, classes and skipped files."""
        classes = f" in {len(self.class_names)} classes" if self.class_names else ""
        reasons = Counter(reason for _, reason in self.skipped)
        left_out = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
        return f"{self.folder}: {len(self.files)} images{classes}" + (f"; left out: {left_out}" if left_out else "")


def list_images(folder: str | Path) -> ImageFolderListing:
    """List the records of a folder by the rules of this module; skipped files are logged.

    Raises UserError for a folder that is missing, has no images, has images both beside and in subfolders, or has
    DICOM files that cannot be read for want of pydicom.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; name the folder with your images")
    walk = _Walk(folder)
    flat = walk.images("")
    names = walk.subfolders("")
    found = {name: walk.images(name, deep=True) for name in names}
    classes = found if any(found.values()) else {}
    if flat and classes:
        inside = next(files[0] for files in classes.values() if files)
        raise UserError(
            f"{folder} has images both beside and in subfolders ({flat[0]}, {inside}); put all of them into "
            "subfolders, one a class, or none"
        )
    if walk.dicom:
        raise UserError(f"{folder}: {len(walk.dicom)} DICOM files, such as {walk.dicom[0]}; {HOW_TO_INSTALL}")
    if not flat and not classes:
        raise UserError(_nothing(folder, walk.skipped))
    if not classes:
        walk.skipped += [(name, "folder without images") for name in names]
    files = flat or [file for inside in classes.values() for file in inside]
    labels = np.repeat(np.arange(len(classes)), [len(inside) for inside in classes.values()]) if classes else None
    listing = ImageFolderListing(folder, files, labels, list(classes), sorted(walk.skipped))
    _report(listing)
    return listing


def images_in(folder: Path) -> list[str]:
    """The sorted names of the image files in one folder, without subfolders, by the rules of this module.

    Meant for the folders of published data sets. Hard links are not detected, to avoid a stat call per file.
    """
    return _Walk(folder, hard_links=False).images("")


def read_headers(paths: Sequence[Path]) -> list[ImageHeader]:
    """The headers of image files, in order. Raises one UserError that lists every file with an unreadable header."""
    headers: list[ImageHeader] = []
    for path in paths:
        try:
            headers.append(read_header(path))
        except UserError as error:
            raise all_problems(error, paths) from None
    return headers


def require_one_size(folder: Path, headers: Sequence[ImageHeader], how: str) -> None:
    """Raise UserError when images differ in size; ``how`` is advice for the message, such as "give size:64"."""
    sizes = Counter((header.height, header.width) for header in headers)
    if len(sizes) > 1:
        shown = ", ".join(f"{height}x{width} ({count})" for (height, width), count in sizes.most_common(3))
        raise UserError(f"{folder}: images of {len(sizes)} different sizes: {shown} ...; {how}")


class _Walk:
    """Walks through a folder once and records the skipped files with reasons."""

    def __init__(self, root: Path, *, hard_links: bool = True) -> None:
        self.root = root
        self.hard_links = hard_links
        self.skipped: list[tuple[str, str]] = []
        self.dicom: list[str] = []
        self._seen: set[tuple[int, int]] = set()

    def subfolders(self, place: str) -> list[str]:
        """Sorted names of the visible subfolders of a folder below the root."""
        found = []
        for entry in self._entries(place):
            if not _is_folder(entry):
                continue
            if reason := self._no_folder(entry):
                self.skipped.append((_joined(place, entry.name), reason))
            else:
                found.append(entry.name)
        return found

    def images(self, place: str, *, deep: bool = False) -> list[str]:
        """Sorted image files of a folder below the root, as paths relative to the root."""
        entries = [entry for entry in self._entries(place) if not _is_folder(entry)]
        stems = {os.path.splitext(entry.name)[0].lower() for entry in entries if _has_suffix(entry.name)}
        found = []
        for entry in entries:
            if reason := self._no_record(entry, stems):
                self.skipped.append((_joined(place, entry.name), reason))
            else:
                found.append(_joined(place, entry.name))
        if deep:
            for name in self.subfolders(place):
                found += self.images(_joined(place, name), deep=True)
            found.sort()
        return found

    def _entries(self, place: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.root / place) as entries:
                return sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise UserError(f"{self.root / place}: cannot be listed ({error.strerror or error})") from None

    def _no_folder(self, entry: os.DirEntry[str]) -> str:
        if entry.name.startswith("."):
            return "hidden folder"
        if entry.name.lower() in HOUSEKEEPING:
            return f"folder {entry.name}"
        return "link to a folder" if entry.is_symlink() else ""

    def _no_record(self, entry: os.DirEntry[str], stems: set[str]) -> str:
        """The reason why a file is not a record; "" for a record."""
        name = entry.name
        if name.startswith("."):
            return "hidden file"
        suffix = os.path.splitext(name)[1].lower()
        if suffix == SUFFIX and not can_read():
            self.dicom.append(name)
            return "DICOM file"
        if not _has_suffix(name):
            return f"{suffix} file" if suffix else "file without a suffix"
        if entry.is_symlink():
            return "link"
        match = THUMBNAIL.fullmatch(os.path.splitext(name)[0])
        if match and (match["after"] or match["before"]).lower() in stems:
            return "thumbnail"
        if not entry.is_file():
            return "pipe or device"
        return "second name of a file" if self.hard_links and self._is_seen(entry.stat()) else ""

    def _is_seen(self, status: os.stat_result) -> bool:
        """Whether a file was seen before under another name; records it."""
        if status.st_nlink < 2:
            return False
        key = (status.st_dev, status.st_ino)
        seen = key in self._seen
        self._seen.add(key)
        return seen


def _joined(place: str, name: str) -> str:
    return f"{place}/{name}" if place else name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that points to itself
        return False


def _has_suffix(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def _nothing(folder: Path, skipped: Sequence[tuple[str, str]]) -> str:
    links = sum("link" in reason for _, reason in skipped)
    if links:
        return (
            f"no images in {folder}: its {links} links are not followed, because one image could be two records; "
            f"type cp -rL {folder} COPY and name the copy"
        )
    return f"no images in {folder} or its subfolders; it looks for {' '.join(sorted(IMAGE_SUFFIXES))}"


def _report(listing: ImageFolderListing) -> None:
    if listing.skipped:
        logger.warning("%s", listing.summary())
        shown = "; ".join(f"{path} ({reason})" for path, reason in listing.skipped[:LISTED])
        more = f"; and {len(listing.skipped) - LISTED} more" if len(listing.skipped) > LISTED else ""
        logger.info("%s: left out: %s%s", listing.folder, shown, more)
    if listing.labels is not None:
        present = set(listing.labels.tolist())
        empty = [name for number, name in enumerate(listing.class_names) if number not in present]
        if empty:
            logger.warning(
                "%s: %d classes have no images and keep their numbers: %s",
                listing.folder,
                len(empty),
                ", ".join(empty[:LISTED]),
            )
