from __future__ import annotations

import numpy as np
import pytest

from ldm.data.emnist import EMNISTBase, EMNISTTrain, EMNISTVal
from ldm.errors import UserError
from tests.data.files import write_idx


@pytest.fixture
def root(tmp_path):
    """Letters 1..26 twice (train) and once (test); the raw image has a horizontal bar, so upright it stands."""
    for name, count in (("letters-train", 52), ("letters-test", 26), ("digits-train", 20)):
        images = np.zeros((count, 28, 28), np.uint8)
        images[:, 14, 4:24] = 255
        labels = np.arange(count) % 26 + 1 if "letters" in name else np.arange(count) % 10
        write_idx(tmp_path / "EMNIST" / "raw" / f"emnist-{name}-images-idx3-ubyte.gz", images)
        write_idx(tmp_path / "EMNIST" / "raw" / f"emnist-{name}-labels-idx1-ubyte.gz", labels)
    return tmp_path


def test_letter_labels_start_at_zero(root):
    train = EMNISTTrain(size=32, root=root)
    assert train.num_classes == 26
    assert (train.labels.min(), train.labels.max()) == (0, 25)
    assert train[0]["image"].shape == (32, 32, 3)


def test_images_are_upright_unless_the_raw_ones_are_wanted(root):
    upright, raw = EMNISTTrain(root=root).pixels(0), EMNISTTrain(root=root, upright=False).pixels(0)
    assert upright[4:24, 14].min() == 255 and raw[14, 4:24].min() == 255
    assert np.array_equal(upright, raw.T)


def test_validation_is_cut_from_the_training_files(root):
    train, held = EMNISTTrain(root=root, holdout=26), EMNISTVal(root=root, holdout=26)
    assert sorted(held.labels) == list(range(26)) and not set(train.rows) & set(held.rows)
    assert len(EMNISTVal(root=root, split="test")) == 26


def test_arrangements_by_either_name(root):
    assert EMNISTBase(root=root, split="digits").num_classes == 10
    assert len(EMNISTVal(root=root, split="digits", holdout=10)) == 10
    assert len(EMNISTBase(datadir=root, size=32, split="digits")) == 20
    with pytest.raises(UserError, match="disagree"):
        EMNISTBase(datadir=root, root=root / "EMNIST")
    with pytest.raises(UserError, match="did you mean 'letters'"):
        EMNISTBase(root=root, arrangement="leters")
    with pytest.raises(UserError, match="disagree"):
        EMNISTBase(root=root, arrangement="letters", split="digits")


def test_labels_outside_the_classes_are_refused(root):
    labels = root / "EMNIST" / "raw" / "emnist-letters-train-labels-idx1-ubyte.gz"
    write_idx(labels, np.arange(52))
    with pytest.raises(UserError, match="do not fit"):
        EMNISTTrain(root=root)
