from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from ldm.data.cifar10 import CIFAR10Train, CIFAR10Val
from ldm.data.cifar100 import CIFAR100Train, CIFAR100Val
from ldm.errors import UserError
from tests.data.files import numbered_images, write_cifar, write_cifar10, write_cifar100


def numbers(data) -> list[int]:
    """The number in the red plane of each image."""
    return [int(data.pixels(i)[0, 0, 0]) for i in range(len(data))]


@pytest.mark.parametrize("place", ["", "cifar-10-batches-py", "CIFAR10/cifar-10-batches-py", "cifar10"])
def test_cifar10_is_read_in_order_with_its_labels(tmp_path, place):
    write_cifar10(tmp_path / place)
    data = CIFAR10Train(root=tmp_path)
    assert numbers(data) == list(range(50)) and np.array_equal(data.labels, np.arange(50) % 10)
    item = data[23]
    assert item["class_label"] == 3 and type(item["class_label"]) is int
    stored = np.round((item["image"] + 1) * 127.5).astype(int)
    assert item["image"].dtype == np.float32 and stored.shape == (32, 32, 3)
    # planes, rows and columns are where the format says: number, row, 100 + column
    assert stored[5, 9].tolist() == [23, 5, 109]


def test_the_train_files_are_split_and_the_test_file_kept_apart(tmp_path):
    write_cifar10(tmp_path)
    train, held = CIFAR10Train(root=tmp_path, holdout=10), CIFAR10Val(root=tmp_path, holdout=10)
    assert sorted(numbers(train) + numbers(held)) == list(range(50)) and sorted(held.labels) == list(range(10))
    assert numbers(CIFAR10Val(root=tmp_path, split="test")) == list(range(50, 60))
    assert CIFAR10Val.default_holdout == 5000


def test_sizes_and_flips(tmp_path):
    write_cifar10(tmp_path)
    assert CIFAR10Train(size=16, root=tmp_path, interpolation="lanczos")[0]["image"].shape == (16, 16, 3)
    assert CIFAR10Train(config={"size": 16}, root=tmp_path)[0]["image"].shape == (16, 16, 3)
    flipped = CIFAR10Train(root=tmp_path, flip_p=1.0)
    assert not flipped.deterministic
    assert np.array_equal(flipped[7]["image"], CIFAR10Train(root=tmp_path)[7]["image"][:, ::-1])
    with pytest.raises(UserError, match="evaluation"):
        CIFAR10Val(root=tmp_path, split="test", flip_p=0.5)


def test_cifar100_has_fine_and_coarse_labels(tmp_path):
    write_cifar100(tmp_path / "cifar-100-python")
    fine, coarse = CIFAR100Train(root=tmp_path), CIFAR100Train(root=tmp_path, coarse=True)
    assert (fine.num_classes, coarse.num_classes) == (100, 20)
    assert fine[57]["class_label"] == 57 and coarse[57]["class_label"] == 11
    assert numbers(CIFAR100Val(root=tmp_path, split="test")) == list(range(100, 120))
    assert len(CIFAR100Val(root=tmp_path, holdout=20)) == 20
    assert fine.fingerprint() != coarse.fingerprint()


def test_missing_files_say_where_and_how(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_DATA_ROOT", str(tmp_path))
    for kind, name in ((CIFAR10Train, "cifar-10-python.tar.gz"), (CIFAR100Train, "cifar-100-python.tar.gz")):
        with pytest.raises(UserError, match=name) as caught:
            kind()
        text = str(caught.value)
        assert str(tmp_path) in text and "download=true" in text and "\n" not in text


def test_downloading_goes_to_the_sets_own_folder(tmp_path, monkeypatch):
    class Fetched:
        def __init__(self, root, download):
            assert download
            write_cifar10(Path(root) / "cifar-10-batches-py")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Fetched)
    assert len(CIFAR10Train(root=tmp_path, download=True)) == 50
    assert (tmp_path / "CIFAR10" / "cifar-10-batches-py" / "test_batch").is_file()


@pytest.mark.parametrize(
    "content, message",
    [
        ({b"data": np.zeros((3, 5), np.uint8), b"labels": [0] * 3}, "3072 bytes"),
        ({b"data": np.zeros((3, 3072), np.uint8), b"labels": [0]}, "for each of its 3 images"),
        ({b"data": np.zeros((3, 3072), np.uint8), b"labels": [0, 1, 10]}, "0..10 are not 0..9"),
        ([1, 2], "not a CIFAR batch"),
        (Path("x"), "asks for pathlib"),
    ],
)
def test_broken_files_are_named(tmp_path, content, message):
    write_cifar10(tmp_path)
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(UserError, match=message):
        CIFAR10Train(root=tmp_path)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_pickles_of_any_age(tmp_path, protocol):
    write_cifar(tmp_path, {"test_batch": (numbered_images(4), {"labels": range(4)})}, protocol)
    assert numbers(CIFAR10Val(root=tmp_path, split="test")) == [0, 1, 2, 3]


def test_python_2_strings_are_read(tmp_path):
    # what Python 2 wrote: protocol 2 with byte strings as SHORT_BINSTRING
    rows = b"".join(bytes([n]) * 1024 + b"\x01" * 1024 + b"\x02" * 1024 for n in range(2))
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
        b"(K\x01K\x02M\x00\x0c\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + len(rows).to_bytes(4, "little")
        + rows
        + b"tb"
    )
    (tmp_path / "test_batch").write_bytes(b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x03K\x07eu.")
    data = CIFAR10Val(root=tmp_path, split="test")
    assert data.labels.tolist() == [3, 7] and data.pixels(1)[4, 4].tolist() == [1, 1, 2]
