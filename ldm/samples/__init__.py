"""Sample files (images, labels and generation metadata): reading, writing and image grids."""

from __future__ import annotations

from ldm.samples.grid import grid, save_grid
from ldm.samples.reader import CLASS_NAMES_KEY, IMAGE_KEY, LABEL_KEY, META_KEY, SampleFile, class_names_in
from ldm.samples.sample_set import SampleSet, first_images, iter_batches
from ldm.samples.writer import SampleWriter, unfinished_folder, unfinished_meta

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
