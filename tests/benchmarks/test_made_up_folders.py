"""Made-up folders: classes, sizes and colours as named, always the same for a seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.made_up_folders import FOLDERS, SIDE, write_folder
from ldm.samples.image_files import read_image
from ldm.samples.image_folder import list_images


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_is_as_named(name: str, tmp_path: Path) -> None:
    write_folder(name, tmp_path / "one", 9, start=3)
    write_folder(name, tmp_path / "two", 9, start=3)
    first, second = list_images(tmp_path / "one"), list_images(tmp_path / "two")
    assert first.class_names == sorted(FOLDERS[name][0]) and first.files == second.files and len(first.files) == 9
    for one, two in zip(first.paths, second.paths, strict=True):
        pixels = read_image(one)
        assert pixels.shape == ((SIDE, SIDE, 3) if name in ("cells", "flowers") else (SIDE, SIDE))
        assert np.array_equal(pixels, read_image(two)) and pixels.std() > 3
