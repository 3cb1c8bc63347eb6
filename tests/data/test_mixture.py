from __future__ import annotations

import numpy as np
import pytest

from ldm.data.base import ArrayDataset
from ldm.data.mixture import Mixture
from ldm.errors import UserError


def part(value: int, count: int, flip_p: float = 0.0) -> ArrayDataset:
    images = np.full((count, 8, 8), value, dtype=np.uint8)
    return ArrayDataset(images, np.arange(count) % 3, channels=1, flip_p=flip_p)


def test_records_follow_each_other():
    mixed = Mixture([part(0, 3), part(255, 4)])
    assert len(mixed) == 7 and mixed.labels.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert [float(mixed[i]["image"].max()) for i in range(7)] == [-1.0] * 3 + [1.0] * 4
    assert mixed[-1]["class_label"] == 0 and mixed.annotations(4) == {"class_label": 1}
    with pytest.raises(IndexError):
        mixed[7]


def test_fingerprint_knows_parts_and_their_order():
    a, b = part(0, 3), part(255, 4)
    assert Mixture([a, b]).fingerprint() == Mixture([a, b]).fingerprint() != Mixture([b, a]).fingerprint()


def test_a_part_with_random_mirrors_makes_it_random():
    assert Mixture([part(0, 3)]).deterministic and not Mixture([part(0, 3), part(1, 3, flip_p=0.5)]).deterministic


def test_parts_from_nodes():
    node = {"target": "ldm.data.garments.GarmentsTrain", "params": {"count": 1, "size": 16}}
    assert len(Mixture([node, node])) == 2
    with pytest.raises(UserError, match="no parts; give a list"):
        Mixture([])
