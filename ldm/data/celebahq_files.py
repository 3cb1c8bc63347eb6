"""Extract Parquet files with images and labels into the folder that `ldm.data.celebahq.CelebAHQ` reads."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from ldm.data.base import content_digests
from ldm.data.celebahq import ATTRIBUTES, image_name
from ldm.data.formats import parquet_rows
from ldm.errors import UserError
from ldm.files import write_atomic

log = logging.getLogger(__name__)

REPOSITORY = "korexyz/celeba-hq-256x256"
EXPECTED = {"train": 28000, "test": 2000}  # images per split in that repository
SIDE = 256
SOURCE = "source.json"
ATTRIBUTE = "Male"


def parquet_files(folder: Path) -> list[Path]:
    """Return the Parquet files of a folder or of its ``data`` folder, sorted by name."""
    for place in (folder, folder / "data"):
        if found := sorted(place.glob("*.parquet")):
            return found
    raise UserError(f"no *.parquet files in {folder} or its data folder; give the folder with the downloaded files")


def extract(files: Sequence[Path], root: Path, *, male: int | None = None, overwrite: bool = False) -> dict[str, int]:
    """Write the images, split lists and labels of Parquet files; return the number of images of each split.

    Files whose names begin with "train" form the train split, others the test split; images are numbered in the order
    of the files. A second call resumes an interrupted one. The labels become an attribute list with one attribute,
    "Male".

    Args:
        files: Parquet files with a column ``image`` (a struct with ``bytes``) and, for labels, ``label``.
        root: folder to write to.
        male: label of the class "Male"; default from the class names in the files, else 1.
        overwrite: delete images and lists extracted from other files.

    Raises:
        UserError: when ``root`` has images extracted from other files, and for rows that are not images.
    """
    counts = [parquet_rows.row_count(path) for path in files]
    has_labels = all("label" in parquet_rows.column_names(path) for path in files)
    value = _male_label(files[0], male) if has_labels else None
    _begin(root, files, counts, overwrite)
    splits: dict[str, list[int]] = {"train": [], "test": []}
    labels: list[int] = []
    columns = ["image", "label"] if has_labels else ["image"]
    number = 0
    with tqdm(total=sum(counts), desc="writing images", unit="image", disable=None) as bar:
        for path in files:
            members = splits["train" if path.name.startswith("train") else "test"]
            for row in parquet_rows.rows([path], columns):
                _write_image(root / "images" / image_name(number), _image_bytes(row, path, number))
                members.append(number)
                if value is not None:
                    labels.append(_is_male(row["label"], value, path))
                number += 1
                bar.update()
    _write_lists(root, splits)
    if has_labels:
        _write_attributes(root / ATTRIBUTES, labels)
    else:
        log.warning("the files have no column 'label', so that images have no classes; there is no %s", ATTRIBUTES)
    return _verified(root, splits, counts)


def _male_label(path: Path, male: int | None) -> int:
    """Return the label of the class "Male"."""
    names = [name.lower() for name in parquet_rows.class_names(path, "label") or ()]
    if male is None and names and "male" not in names:
        raise UserError(f"the classes in {path} are {names}, none is 'male'; say which label is by --male LABEL")
    if male is not None:
        return int(male)
    if names:
        return names.index("male")
    log.warning("the files do not say what their labels mean; 1 is taken for a man (--male LABEL changes that)")
    return 1


def _is_male(label: Any, male: int, path: Path) -> int:
    if isinstance(label, bool) or not isinstance(label, int) or label not in (0, 1):
        raise UserError(f"{path} has the label {label!r}, where 0 and 1 are expected; fetch the file again")
    return int(label == male)


def _begin(root: Path, files: Sequence[Path], counts: Sequence[int], overwrite: bool) -> None:
    """Create the folder, and record the Parquet files that its images come from."""
    images, note = root / "images", root / SOURCE
    contents = content_digests(files)
    source = [[path.name, digest, count] for path, digest, count in zip(files, contents, counts, strict=True)]
    images.mkdir(parents=True, exist_ok=True)
    present = [entry for entry in os.listdir(images) if re.fullmatch(r"img\d{8}\.png", entry)]
    try:
        same = json.loads(note.read_text()) == source
    except (OSError, ValueError):
        same = False
    if present and not same:
        if not overwrite:
            raise UserError(
                f"{images} has {len(present)} images that come from other files; give another --root, or --overwrite "
                "to delete them"
            )
        for entry in present:
            (images / entry).unlink()
    if not same:
        for name in ("image_list.txt", ATTRIBUTES, "train_filenames.pickle", "test_filenames.pickle"):
            (root / name).unlink(missing_ok=True)
        _write(note, json.dumps(source, indent=1).encode())


def _image_bytes(row: Mapping[str, Any], path: Path, number: int) -> bytes:
    data = row["image"].get("bytes") if isinstance(row["image"], Mapping) else row["image"]
    if not isinstance(data, bytes) or not data:
        raise UserError(f"{path}: the image numbered {number} has no bytes; fetch the file again")
    return data


def _write_image(target: Path, data: bytes) -> None:
    """Write an encoded image as a PNG file; PNG bytes are not re-encoded, and a complete file is kept."""
    is_png = data.startswith(b"\x89PNG\r\n\x1a\n")
    if target.is_file() and (target.read_bytes() == data if is_png else target.stat().st_size > 0):
        return
    temporary = target.with_name(f".{target.name}.tmp")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if is_png and image.mode == "RGB":
                image.verify()
                temporary.write_bytes(data)
            else:
                image.convert("RGB").save(temporary, format="PNG")
        temporary.replace(target)
    except (SyntaxError, ValueError, UnidentifiedImageError) as error:
        raise UserError(f"{target.name}: its bytes are not an image ({error}); fetch the files again") from None
    finally:
        temporary.unlink(missing_ok=True)


def _write_lists(root: Path, splits: Mapping[str, Sequence[int]]) -> None:
    for name, numbers in splits.items():
        _write(root / f"{name}_filenames.pickle", pickle.dumps(list(numbers)))
    everything = sorted(number for numbers in splits.values() for number in numbers)
    # the third column maps each image to itself, because the original CelebA image is unknown
    lines = ["idx celebA_idx split", *(f"{number} {image_name(number)} {number}" for number in everything)]
    _write(root / "image_list.txt", ("\n".join(lines) + "\n").encode())


def _write_attributes(path: Path, labels: Iterable[int]) -> None:
    rows = [f"{image_name(number)} {1 if label else -1}" for number, label in enumerate(labels)]
    _write(path, ("\n".join([str(len(rows)), ATTRIBUTE, *rows]) + "\n").encode())


def _write(path: Path, content: bytes) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomic(path, write)


def _verified(root: Path, splits: Mapping[str, Sequence[int]], counts: Sequence[int]) -> dict[str, int]:
    """Check the images on disk against rows and lists; return the number of images of each split."""
    present = {entry for entry in os.listdir(root / "images") if entry.endswith(".png") and not entry.startswith(".")}
    wanted = {image_name(number) for numbers in splits.values() for number in numbers}
    if len(wanted) != sum(counts) or present != wanted:
        raise UserError(
            f"{root / 'images'} has {len(present)} images and the files {sum(counts)} rows; type the same with "
            "--overwrite, or give another --root"
        )
    found = {name: len(numbers) for name, numbers in splits.items()}
    if found != EXPECTED:
        log.warning("%s images, where %s has %s", found, REPOSITORY, EXPECTED)
    with Image.open(root / "images" / image_name(0)) as image:
        if image.size != (SIDE, SIDE):
            log.warning("images are %dx%d, not %dx%d", *image.size, SIDE, SIDE)
    return found
