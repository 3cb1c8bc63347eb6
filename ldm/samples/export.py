"""Export of sample sets to other formats: DPImageBench's ``gen.npz``, an image folder, Parquet as on the hub."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ldm.errors import UserError
from ldm.files import check_new_folder, new_folder, write_atomic
from ldm.samples.sample_set import SampleSet


def to_bytes(samples: SampleSet) -> np.ndarray:
    """The images as uint8 (N, H, W, C); [-1, 1] is mapped to [0, 255] and rounded to the nearest value."""
    scaled = ((samples.images + 1) * 127.5).round().clamp(0, 255)
    return scaled.byte().permute(0, 2, 3, 1).contiguous().numpy()


def write_npz(samples: SampleSet, path: Path) -> None:
    """Write ``x`` uint8 (N, H, W, C) and ``y`` int64 (N,), DPImageBench's format. Raises UserError without labels."""
    if samples.labels is None:
        raise UserError(f"{path}: this form needs classes, and the samples have none")
    images, labels = to_bytes(samples), samples.labels.numpy()
    write_atomic(path, lambda temporary: np.savez(temporary, x=images, y=labels))


def write_folder(samples: SampleSet, folder: Path, class_names: Sequence[str] = ()) -> None:
    """Write one PNG per image into the new ``folder``, with one subfolder per class, atomically.

    A subfolder is named after its class, or its class number without names; images are numbered as in the sample file.
    A class without images has an empty one, because readers number the classes of a folder by its subfolders.
    """
    check_new_folder(folder, ", so that no other image stays in it")
    places = _class_folders(samples, class_names)
    digits = len(str(max(len(samples) - 1, 0)))
    with new_folder(folder) as staging:
        for place in places:
            (staging / place).mkdir()
        for index, pixels in enumerate(to_bytes(samples)):
            place = "" if samples.labels is None else places[int(samples.labels[index])]
            _image(pixels).save(staging / place / f"{index:0{digits}}.png")


def write_parquet(samples: SampleSet, path: Path, class_names: Sequence[str] = ()) -> None:
    """Write the columns ``image`` (PNG bytes and a file name) and ``label``, with the hub's metadata for them."""
    import pyarrow
    import pyarrow.parquet

    encoded = []
    for index, pixels in enumerate(to_bytes(samples)):
        encoded.append({"bytes": png_bytes(pixels), "path": f"{index}.png"})
    columns: dict[str, object] = {"image": encoded}
    features: dict[str, object] = {"image": {"_type": "Image"}}
    if samples.labels is not None:
        columns["label"] = samples.labels.tolist()
        names = checked_names(samples, class_names)
        features["label"] = {"names": names, "_type": "ClassLabel"} if names else {"dtype": "int64", "_type": "Value"}
    table = pyarrow.table(columns).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    write_atomic(path, lambda temporary: pyarrow.parquet.write_table(table, temporary, write_page_checksum=True))


def png_bytes(pixels: np.ndarray) -> bytes:
    """One image of `to_bytes` (H, W, C) as a PNG file."""
    buffer = io.BytesIO()
    _image(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _image(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def checked_names(samples: SampleSet, class_names: Sequence[str]) -> list[str]:
    """The class names, checked against the labels; empty without names."""
    names = list(class_names)
    if len(set(names)) < len(names):
        raise UserError(f"the class names {', '.join(names)} have a name twice; give others with --class-names")
    if names and samples.labels is not None and len(samples) and int(samples.labels.max()) >= len(names):
        raise UserError(f"the samples have class {int(samples.labels.max())}, and {len(names)} class names were given")
    return names


def _class_folders(samples: SampleSet, class_names: Sequence[str]) -> list[str]:
    """The subfolder of each class, none without classes. Raises UserError for a name that cannot name a folder."""
    if samples.labels is None:
        return []
    names = checked_names(samples, class_names)
    for name in names:
        if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
            raise UserError(f"the class name {name!r} cannot be the name of a folder; give others with --class-names")
    count = int(samples.labels.max()) + 1 if len(samples) else 0
    return names or [f"{label:0{len(str(count - 1))}}" for label in range(count)]
