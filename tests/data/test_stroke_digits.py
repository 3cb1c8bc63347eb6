from __future__ import annotations

import numpy as np
import pytest

from ldm.data.rendering.strokes import HABITS, HandRange, curves, habit, random_hands, spline, write
from ldm.data.stroke_digits import StrokeDigitsTrain, StrokeDigitsVal
from ldm.errors import UserError


def hands(count: int = 100) -> tuple[np.ndarray, np.ndarray]:
    uniform, normal = random_hands(0, 0, 0)
    return uniform[:count], normal[:count]


def test_items_labels_and_framing(tmp_path):
    data = StrokeDigitsTrain(60, cache=tmp_path)
    assert data[7]["image"].shape == (32, 32, 1) and data[17]["class_label"] == 7
    for index in range(60):
        image = data.pixels(index).astype(float)
        rows, columns = np.flatnonzero(image.any(1)), np.flatnonzero(image.any(0))
        assert max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1 <= 20
        places = np.arange(32) + 0.5
        assert abs((image.sum(1) @ places) / image.sum() - 16) <= 1.0
        assert abs((image.sum(0) @ places) / image.sum() - 16) <= 1.0


def test_an_item_depends_on_seed_split_and_number_only(tmp_path):
    few, more = StrokeDigitsTrain(20, cache=tmp_path), StrokeDigitsTrain(600, cache=tmp_path)
    assert all(np.array_equal(few.pixels(i), more.pixels(i)) for i in range(20))
    assert not np.array_equal(few.pixels(3), StrokeDigitsVal(20, cache=tmp_path).pixels(3))
    assert not np.array_equal(few.pixels(3), StrokeDigitsTrain(20, seed=1, cache=tmp_path).pixels(3))


def test_a_curve_goes_through_its_places():
    weights = spline(4)
    assert np.allclose(weights.sum(1), 1.0, atol=1e-6)
    places = np.array([[0.0, 0.0], [1.0, 2.0], [3.0, 1.0], [4.0, 4.0]])
    curve = weights @ places
    assert all(np.abs(curve - place).sum(1).min() < 1e-6 for place in places)


def test_the_pen_is_lifted_between_strokes():
    way = habit(("00 09", "90 99"))
    assert (~way.joined).sum() == 1
    uniform, normal = hands(4)
    still = HandRange(slant=(0, 0), rotation=0, width=(1, 1), jitter=(0, 0), sway=0, pen=(1.5, 1.5))
    curve, joined = curves(way, uniform, normal, still)
    assert np.allclose(curve[0], curve[3]) and np.allclose(curve[0, 0], (-0.5, -0.5)) and not joined.all()


def test_without_variation_a_seven_is_a_bar_and_a_leg():
    uniform, normal = hands(1)
    still = HandRange(slant=(0, 0), rotation=0, width=(1, 1), jitter=(0, 0), sway=0, pen=(2, 2))
    image = write(np.array([7]), np.zeros_like(uniform), normal * 0, still)[0] > 100
    rows = np.flatnonzero(image.any(1))
    assert image[rows[0] : rows[0] + 3].any(0).sum() > 10 > 4 > image[rows[-1] - 1].sum() > 0


def test_a_wider_pen_leaves_more_ink():
    uniform, normal = hands()
    digits = np.arange(100) % 10
    thin, thick = (write(digits, uniform, normal, HandRange(pen=(w, w))).mean() for w in (1.5, 3.5))
    assert thick > 1.5 * thin


def test_every_digit_has_several_habits_and_readable_places():
    assert sorted(HABITS) == list(range(10))
    for ways in HABITS.values():
        assert len(ways) >= 2
        for share, strokes in ways:
            assert share > 0 and habit(strokes).places.max() <= 1.0


@pytest.mark.parametrize("wrong", [{"count": 0}, {"seed": -1}, {"size": 30}])
def test_bad_arguments(tmp_path, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UserError, match=f"{name}={value}; give "):
        StrokeDigitsTrain(**{"count": 2, "cache": tmp_path, **wrong})
