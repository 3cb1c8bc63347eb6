from __future__ import annotations

import numpy as np
import pytest

from ldm.data.svhn import SVHNTrain, SVHNVal
from ldm.errors import UserError
from tests.data.files import write_svhn

scipy_io = pytest.importorskip("scipy.io", reason="scipy is not installed; type: pip install scipy")


def numbers(data) -> list[int]:
    return [int(data.pixels(i)[0, 0, 0]) for i in range(len(data))]


@pytest.mark.parametrize("place", ["", "SVHN", "SVHN_Train"])
def test_images_and_digits(tmp_path, place):
    write_svhn(tmp_path / place)
    data = SVHNTrain(root=tmp_path)
    assert numbers(data) == list(range(40)) and np.array_equal(data.labels, np.arange(40) % 10)
    stored = np.round((data[30]["image"] + 1) * 127.5).astype(int)
    assert stored[5, 9].tolist() == [30, 5, 109] and data[30]["class_label"] == 0
    assert SVHNTrain(size=16, root=tmp_path)[0]["image"].shape == (16, 16, 3)


def test_the_train_file_is_split_and_the_test_file_kept_apart(tmp_path):
    write_svhn(tmp_path)
    write_svhn(tmp_path / "SVHN_Val", "test", 10, start=100)
    train, held = SVHNTrain(root=tmp_path, holdout=10), SVHNVal(root=tmp_path, holdout=10)
    assert sorted(numbers(train) + numbers(held)) == list(range(40)) and sorted(held.labels) == list(range(10))
    assert numbers(SVHNVal(root=tmp_path, split="test")) == list(range(100, 110))


def test_digits_are_never_mirrored(tmp_path):
    write_svhn(tmp_path)
    with pytest.raises(UserError, match="mirrored"):
        SVHNTrain(root=tmp_path, flip_p=0.5)
    assert np.array_equal(SVHNTrain(root=tmp_path)[3]["image"], SVHNTrain(root=tmp_path)[3]["image"])


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(UserError, match="train_32x32.mat") as caught:
        SVHNTrain(root=tmp_path)
    assert str(tmp_path) in str(caught.value) and "download=true" in str(caught.value)
    (tmp_path / "train_32x32.mat").write_bytes(b"no Matlab file")
    with pytest.raises(UserError, match="cannot be read"):
        SVHNTrain(root=tmp_path)
    scipy_io.savemat(tmp_path / "train_32x32.mat", {"X": np.zeros((32, 32, 3, 2), np.uint8), "y": np.zeros((2, 1))})
    with pytest.raises(UserError, match="not SVHN's 1..10"):
        SVHNTrain(root=tmp_path)
