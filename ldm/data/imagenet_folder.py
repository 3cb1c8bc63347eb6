"""ImageNet (ILSVRC2012) as a folder of synset folders: location, class numbers and crops."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from PIL import Image

from ldm.data.base import DATA_ROOT_VARIABLE, FrameOptions, data_root, to_item
from ldm.data.folder import FileDataset
from ldm.errors import UserError, nearest
from ldm.files import read_text
from ldm.samples.framing import INTERPOLATIONS
from ldm.samples.image_folder import images_in

SYNSET = re.compile(r"n\d{8}")
UNREADABLE = frozenset({"n06596364_9591.JPEG"})  # broken in the distributed archive
HUMAN_NAMES = ("synset_human.txt", "LOC_synset_mapping.txt")
OPTIONS = ("size", "random_crop", "sub_indices", "keep_orig_class_label")


class FolderOptions(FrameOptions, total=False):
    """Options that the data sets pass on; documented at `RecordDataset`."""

    interpolation: str | None


class ImageNetFolder(FileDataset):
    """The images below ``.../n01440764/*.JPEG``; classes are the sorted synsets, 0 to 999.

    Items: ``image``, ``class_label``, ``relpath`` (below the folder), ``synsets`` (the synset), ``human_label`` (its
    name, when synset_human.txt or LOC_synset_mapping.txt lies beside the data; else the synset), ``file_path_``.

    Args:
        size, flip_p, rest: see `ldm.data.base.RecordDataset`; the shorter side is resized to ``size``, then the centre
            is cropped.
        config: older form, a mapping of the options ``size, random_crop, sub_indices, keep_orig_class_label``.
        process_images: False gives items without ``image``, which are not decoded.
        data_root: folder with the synset folders, or a parent of it in one of the usual layouts.
        random_crop: random crop instead of the centre crop; not in validation sets.
        sub_indices: use these classes only, such as "32-123, 256, 280-321" (the end of a range is excluded, as in the
            original code), or a list of numbers.
        keep_orig_class_label: with ``sub_indices``, or when folders are missing, keep the original class numbers as
            labels; by default the selected classes are renumbered from 0.

    Raises:
        UserError: for an invalid option, and when the folders are missing.
    """

    FIXED_OPTIONS = ("folder", "files", "labels")  # set by this class
    folder_names: Sequence[str] = ()
    how_to_fetch = ""

    def __init__(
        self,
        size: int | None = None,
        flip_p: float = 0.0,
        *,
        config: Mapping[str, Any] | None = None,
        process_images: bool = True,
        data_root: str | os.PathLike[str] | None = None,
        random_crop: bool | None = None,
        sub_indices: str | int | Sequence[int] | None = None,
        keep_orig_class_label: bool | None = None,
        **rest: Unpack[FolderOptions],
    ):
        name = type(self).__name__
        options = (size, random_crop, sub_indices, keep_orig_class_label)
        given = merged_options(name, dict(zip(OPTIONS, options, strict=True)), config)
        self.process_images = bool(process_images)
        self.random_crop = bool(given["random_crop"])
        if self.random_crop and self.is_evaluation:
            raise UserError(f"{name}: random_crop in an evaluation set; leave it out")
        if self.random_crop and given["size"] is None:
            raise UserError(f"{name}: random_crop needs a size; give size=256")
        folder = self.find(data_root)
        present = synsets_in(folder)
        self._human = human_names(folder)
        known = sorted(self._human) if set(present) <= set(self._human) else present
        used = present
        if given["sub_indices"] is not None:
            chosen = {known[number] for number in class_numbers(name, given["sub_indices"], len(known))}
            used = [synset for synset in present if synset in chosen]
        found = [[file for file in images_in(folder / synset) if file not in UNREADABLE] for synset in used]
        numbering = known if given["keep_orig_class_label"] else used
        files = [f"{synset}/{file}" for synset, inside in zip(used, found, strict=True) for file in inside]
        if not files:
            raise UserError(f"{name}: no images in the {len(used)} synset folders of {folder}; unpack them again")
        labels = np.repeat([numbering.index(synset) for synset in used], [len(inside) for inside in found])
        super().__init__(folder, files, labels, given["size"], flip_p, **rest)
        self.num_classes = len(numbering)
        self.class_names = [self._human.get(synset, synset) for synset in numbering]

    def find(self, root: str | os.PathLike[str] | None) -> Path:
        """Return the folder with the synset folders. Raises UserError, with instructions, when there is none."""
        base = data_root(root)
        places = [base / name for name in self.folder_names] + ([base] if root is not None else [])
        for place in places:
            if place.is_dir() and synsets_in(place):
                return place
        raise UserError(
            f"{type(self).__name__}: no synset folders (n01440764, ...) in {base / self.folder_names[0]} or the other "
            f"usual places below {base}; {self.how_to_fetch}, then set data_root (or {DATA_ROOT_VARIABLE})"
        )

    @property
    def deterministic(self) -> bool:
        return super().deterministic and not self.random_crop

    def annotations(self, index: int) -> dict[str, Any]:
        synset = self.files[index].partition("/")[0]
        return {
            "class_label": self.label(index),
            "relpath": self.files[index],
            "synsets": synset,
            "human_label": self._human.get(synset, synset),
            "file_path_": str(self.path(index)),
        }

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = self._checked(index)
        if not self.process_images:
            return self.annotations(index)
        if not self.random_crop:
            return super().__getitem__(index)
        assert self.size is not None
        image = self.pixels(index)
        down, right, flip = self._draws.uniform(index, 3)
        side = min(image.shape[:2])
        image = cut_square(image, side, down, right, self.size, INTERPOLATIONS[self.interpolation])
        if flip < self.flip_p:
            image = image[:, ::-1]
        return {"image": to_item(image, self.channels), **self.annotations(index)}


def cut_square(
    image: np.ndarray, side: int, down: float, right: float, size: int, filter: Image.Resampling
) -> np.ndarray:
    """Return a square crop of ``side`` pixels as (size, size[, 3]), at position ``down`` and ``right``, each 0 to 1."""
    top, left = (round(place * (length - side)) for place, length in zip((down, right), image.shape[:2], strict=True))
    box = (left, top, left + side, top + side)
    return np.asarray(Image.fromarray(image).resize((size, size), filter, box=box))


def merged_options(name: str, given: Mapping[str, Any], config: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the options merged from arguments and the mapping ``config``. Raises UserError when they disagree."""
    merged = dict(given)
    if config is None:
        return merged
    if not hasattr(config, "keys"):
        raise UserError(f"{name}: config={config!r} is not a mapping; write size=256 instead")
    for key in config.keys():  # noqa: SIM118 - OmegaConf's "in" is false for a missing value (???)
        if key not in given:
            raise UserError(f"{name}: config has no key {str(key)!r}{nearest(str(key), given)}")
        if given[key] is not None and given[key] != config[key]:
            raise UserError(f"{name}: {key}={given[key]} and config.{key}={config[key]} disagree; give {key} only")
        merged[key] = config[key]
    return merged


def class_numbers(name: str, wanted: str | int | Sequence[int], count: int) -> list[int]:
    """Return the class numbers of "32-123, 256" (32 to 122, and 256) or of a list. Raises UserError."""
    try:
        if isinstance(wanted, str):
            ends = [[int(end) for end in part.split("-")] for part in wanted.split(",")]
            numbers = [number for end in ends for number in (range(*end) if len(end) > 1 else end)]
        else:
            numbers = [int(number) for number in ([wanted] if isinstance(wanted, int) else wanted)]
    except (ValueError, TypeError):
        raise UserError(f"{name}: sub_indices={wanted!r} is no list of classes; write '0-10, 256'") from None
    for number in numbers:
        if not 0 <= number < count:
            raise UserError(f"{name}: sub_indices names class {number}; there are {count} classes, 0 to {count - 1}")
    if not numbers:
        raise UserError(f"{name}: sub_indices={wanted!r} names no class; the end of a range is left out")
    return sorted(set(numbers))


def synsets_in(folder: Path) -> list[str]:
    """Return the sorted names of a folder's synset folders."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if SYNSET.fullmatch(entry.name) and entry.is_dir())


def human_names(folder: Path) -> dict[str, str]:
    """Return the names of synsets from the file of names beside the data; empty without one."""
    for place in (folder, *folder.parents[:3]):
        for name in HUMAN_NAMES:
            if (place / name).is_file():
                lines = read_text(place / name).splitlines()
                pairs = [line.strip().partition(" ") for line in lines]
                return {synset: text for synset, _, text in pairs if SYNSET.fullmatch(synset)}
    return {}


class ImageNetTrain(ImageNetFolder):
    """The 1,281,167 training images of ImageNet, in folders named after their synsets."""

    folder_names = (
        "ImageNet/train",
        "imagenet/train",
        "ILSVRC2012_train/data",
        "autoencoders/data/ILSVRC2012_train/data",
        "ILSVRC/Data/CLS-LOC/train",
        "train",
    )
    how_to_fetch = "get ILSVRC2012_img_train.tar from image-net.org and unpack each synset's archive into its folder"


class ImageNetValidation(ImageNetFolder):
    """The 50,000 validation images of ImageNet, sorted into folders named after their synsets."""

    is_evaluation = True
    folder_names = (
        "ImageNet/val",
        "imagenet/val",
        "ILSVRC2012_validation/data",
        "autoencoders/data/ILSVRC2012_validation/data",
        "ILSVRC/Data/CLS-LOC/val",
        "val",
    )
    how_to_fetch = "get ILSVRC2012_img_val.tar from image-net.org and sort the images into folders of their synsets"
