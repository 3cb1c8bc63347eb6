from __future__ import annotations

import sys
import types

import numpy as np
import pytest

from ldm.data.camelyon import CamelyonTrain, CamelyonVal
from ldm.errors import UserError
from tests.data.files import write_camelyon


def numbers(data) -> list[int]:
    return [int(data.pixels(i)[0, 0, 0]) for i in range(len(data))]


@pytest.mark.parametrize("place", ["", "camelyon17_v1.0", "camelyon17/camelyon17_v1.0"])
def test_splits_go_by_hospital(tmp_path, place):
    write_camelyon(tmp_path / place)
    train, test = CamelyonTrain(root=tmp_path), CamelyonVal(root=tmp_path)
    assert numbers(train) == train.rows.tolist() == [0, 4, 7] and train.labels.tolist() == [1, 0, 1]
    assert numbers(test) == [1, 5] and test.labels.tolist() == [0, 1]
    assert numbers(CamelyonVal(root=tmp_path, split="id_val")) == [2, 6]
    assert numbers(CamelyonVal(root=tmp_path, split="val")) == [3]
    assert train.source == test.source and not set(train.rows) & set(test.rows)


def test_the_middle_is_cut_out_as_it_is(tmp_path):
    write_camelyon(tmp_path)
    stored = np.round((CamelyonTrain(root=tmp_path)[1]["image"] + 1) * 127.5).astype(int)
    assert (
        stored.shape == (32, 32, 3) and stored[0, 0].tolist() == [4, 32, 32] and stored[31, 31].tolist() == [4, 63, 63]
    )
    assert CamelyonTrain(size=64, root=tmp_path)[0]["image"].shape == (64, 64, 3)
    assert CamelyonTrain(config={"size": 16}, root=tmp_path)[0]["image"].shape == (16, 16, 3)
    scaled = np.round((CamelyonTrain(root=tmp_path, framing="resize")[0]["image"] + 1) * 127.5).astype(int)
    assert scaled.shape == (32, 32, 3) and scaled[0, 0, 1] < 4
    with pytest.raises(UserError, match="cannot be cut"):
        _ = CamelyonTrain(size=97, root=tmp_path)[0]


def test_flips_are_for_training_alone(tmp_path):
    write_camelyon(tmp_path)
    plain, flipped = CamelyonTrain(root=tmp_path), CamelyonTrain(root=tmp_path, flip_p=1.0)
    assert np.array_equal(flipped[0]["image"], plain[0]["image"][:, ::-1])
    with pytest.raises(UserError, match="evaluation"):
        CamelyonVal(root=tmp_path, flip_p=0.5)


def test_what_is_missing_or_broken_is_named(tmp_path):
    with pytest.raises(UserError, match="metadata.csv") as caught:
        CamelyonTrain(root=tmp_path)
    assert str(tmp_path) in str(caught.value) and "pip install wilds" in str(caught.value)
    write_camelyon(tmp_path)
    with pytest.raises(UserError, match="one of train, id_val, val, test"):
        CamelyonTrain(root=tmp_path, split="validation")
    (tmp_path / "metadata.csv").write_text(
        ",patient,node,x_coord,y_coord,tumor,slide,center,split\n0,004,4,1,2,x,0,0,0\n"
    )
    with pytest.raises(UserError, match="line 2"):
        CamelyonTrain(root=tmp_path)
    (tmp_path / "metadata.csv").write_text("patient,node\n1,2\n")
    with pytest.raises(UserError, match="no column 'x_coord'"):
        CamelyonTrain(root=tmp_path)


def test_downloading_is_done_by_wilds(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wilds", None)
    with pytest.raises(UserError, match="pip install wilds"):
        CamelyonTrain(root=tmp_path, download=True)
    wilds = types.ModuleType("wilds")
    wilds.get_dataset = lambda dataset, download, root_dir: write_camelyon(tmp_path / "camelyon17" / f"{dataset}_v1.0")
    monkeypatch.setitem(sys.modules, "wilds", wilds)
    assert len(CamelyonTrain(root=tmp_path, download=True)) == 3
