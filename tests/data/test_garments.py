from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from ldm.data.garments import DRAWN, NAMES, GarmentsTrain, GarmentsVal, garment
from ldm.data.rendering.garment_paint import area_of, painted
from ldm.data.rendering.garment_pieces import Dice, Piece, box, points
from ldm.errors import UserError


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("garments")


def dice(seed: int = 0) -> Dice:
    return Dice(np.random.default_rng(seed))


def test_items_labels_and_border(cache):
    data = GarmentsTrain(40, cache=cache)
    item = data[13]
    assert item["image"].shape == (32, 32, 1) and item["image"].dtype == np.float32
    assert item["class_label"] == 3 and np.array_equal(data.labels, np.arange(40) % 10) and data.num_classes == 10
    stored = np.stack([data.pixels(i) for i in range(40)])
    assert stored[:, :2].max() == stored[:, :, :2].max() == stored[:, -2:].max() == stored[:, :, -2:].max() == 0


def test_an_item_depends_on_seed_split_and_number_only(cache, tmp_path):
    few, more = GarmentsTrain(5, cache=cache), GarmentsTrain(8, cache=tmp_path)
    assert all(np.array_equal(few.pixels(i), more.pixels(i)) for i in range(5))
    assert not np.array_equal(few.pixels(0), GarmentsTrain(5, cache=cache, seed=1).pixels(0))
    assert not np.array_equal(few.pixels(0), GarmentsVal(5, cache=cache).pixels(0))
    assert few.fingerprint() != GarmentsVal(5, cache=cache).fingerprint()


def test_a_garment_fills_the_frame_and_lies_in_the_middle():
    for index in range(60):
        image = garment(index % 10, 0, 0, index)
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        assert max(rows[-1] - rows[0], columns[-1] - columns[0]) >= 23, NAMES[index % 10]
        assert abs((rows[0] + rows[-1]) / 2 - 13.5) <= 3 and abs((columns[0] + columns[-1]) / 2 - 13.5) <= 3


def test_what_the_words_mean():
    """Trousers and dresses are tall, shoes are wide; trousers have a gap between the legs, sandals are open."""
    shapes: dict[str, list] = {name: [] for name in NAMES}
    for index in range(200):
        inked = garment(index % 10, 3, 0, index) > 8
        rows, columns = np.flatnonzero(inked.any(1)), np.flatnonzero(inked.any(0))
        inside = inked[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        shapes[NAMES[index % 10]].append((inside.shape[0] / inside.shape[1], inside.mean()))
    tall = {name: np.median([ratio for ratio, _ in found]) for name, found in shapes.items()}
    full = {name: np.median([share for _, share in found]) for name, found in shapes.items()}
    assert min(tall["Trouser"], tall["Dress"]) > 1.6 > tall["T-shirt/top"] > 0.7 > tall["Sneaker"]
    assert tall["Coat"] > tall["Pullover"] and tall["Ankle boot"] > tall["Sneaker"]
    assert full["Sandal"] < min(full[name] for name in ("Sneaker", "Ankle boot", "Bag", "Pullover"))


def test_every_class_varies():
    for kind in range(len(DRAWN)):
        drawn = [garment(kind, 0, 0, number).tobytes() for number in range(12)]
        assert len(set(drawn)) == 12


def test_a_hole_shows_the_ground_and_a_later_piece_covers_it():
    square = Piece(box(0, 0, 1, 1))
    ring = [square, Piece(box(0.3, 0.3, 0.7, 0.7), hole=True)]
    assert painted(ring, dice(), plain=1.0)[14, 14] == 0
    assert painted([*ring, Piece(box(0.4, 0.4, 0.6, 0.6))], dice(), plain=1.0)[14, 14] > 0


def test_area_of_a_triangle_is_half_of_its_box():
    triangle = area_of(Piece(points((0, 0), (60, 0), (0, 60))), 84)
    assert abs(triangle.sum() - 1800) < 120
    assert area_of(Piece(points((10, 10), (50, 10)), width=4), 84).sum() == pytest.approx(160, abs=30)


def test_reading_again_and_sending_to_a_worker(cache):
    data = GarmentsTrain(6, cache=cache)
    stamp = [path.stat().st_mtime_ns for path in sorted(cache.glob("*.npy"))]
    again = pickle.loads(pickle.dumps(data))
    assert np.array_equal(again.pixels(5), data.pixels(5))
    assert stamp == [path.stat().st_mtime_ns for path in sorted(cache.glob("*.npy"))]


@pytest.mark.parametrize("wrong", [{"count": 0}, {"seed": -1}, {"size": 8}])
def test_bad_arguments(cache, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UserError, match=f"{name}={value}; give "):
        GarmentsTrain(**{"count": 2, "cache": cache, **wrong})
