"""Sample files (images, labels and generation metadata): reading, writing, image grids, and parts of a job.

Names are loaded when they are used: a command parses ``--shard`` with `ldm.samples.shards` before it imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.samples.image_grid import grid, save_grid
    from ldm.samples.reader import CLASS_NAMES_KEY, IMAGE_KEY, LABEL_KEY, META_KEY, SampleFile, class_names_in
    from ldm.samples.sample_set import SampleSet, first_images, iter_batches
    from ldm.samples.writer import SampleWriter, unfinished_folder, unfinished_meta

_HOMES = {
    "CLASS_NAMES_KEY": "reader",
    "IMAGE_KEY": "reader",
    "LABEL_KEY": "reader",
    "META_KEY": "reader",
    "SampleFile": "reader",
    "SampleSet": "sample_set",
    "SampleWriter": "writer",
    "class_names_in": "reader",
    "first_images": "sample_set",
    "grid": "image_grid",
    "iter_batches": "sample_set",
    "save_grid": "image_grid",
    "unfinished_folder": "writer",
    "unfinished_meta": "writer",
}

__all__ = [
    "CLASS_NAMES_KEY",
    "IMAGE_KEY",
    "LABEL_KEY",
    "META_KEY",
    "SampleFile",
    "SampleSet",
    "SampleWriter",
    "class_names_in",
    "first_images",
    "grid",
    "iter_batches",
    "save_grid",
    "unfinished_folder",
    "unfinished_meta",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
