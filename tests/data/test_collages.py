"""Rendered collages: colour, classes, and items that depend on seed, split and number alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ldm.data.collages import FORMS, CollagesTrain, CollagesVal, collage


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("collages")


def test_items_are_in_colour_and_grey_on_demand(cache: Path) -> None:
    data = CollagesTrain(20, cache=cache)
    item = data[13]
    assert item["image"].shape == (32, 32, 3) and item["class_label"] == 3 and data.num_classes == len(FORMS) == 10
    assert len({data.pixels(i).tobytes() for i in range(20)}) == 20
    grey = CollagesTrain(20, channels=1, cache=cache)
    assert grey[13]["image"].shape == (32, 32, 1) and (grey.pixels(13) == data.pixels(13)).all()
    assert np.ptp(data.pixels(13).astype(int), axis=2).max() > 0 or np.ptp(data.pixels(3).astype(int), axis=2).max() > 0


def test_an_item_depends_on_seed_split_and_number_only(cache: Path, tmp_path: Path) -> None:
    few, more = CollagesTrain(4, cache=cache), CollagesTrain(6, cache=tmp_path)
    assert all(np.array_equal(few.pixels(i), more.pixels(i)) for i in range(4))
    assert not np.array_equal(few.pixels(0), CollagesTrain(4, cache=cache, seed=1).pixels(0))
    assert not np.array_equal(few.pixels(0), CollagesVal(4, cache=cache).pixels(0))


def test_a_form_is_seen() -> None:
    """A class differs from the same draw of another class."""
    assert all(not np.array_equal(collage(kind, 0, 0, 5), collage((kind + 1) % 10, 0, 0, 5)) for kind in range(10))
