from __future__ import annotations

import pickle

import numpy as np
import pytest

from ldm.data.imagenet import ImageNet32Train, ImageNet32Validation, ImageNet64Train, ImageNet64Validation
from ldm.errors import UserError


def batch(side: int, first: int, count: int = 3, base: int = 1) -> dict:
    """A batch in the public form: rows of three colour planes; red is the image's number, labels begin at 1."""
    planes = np.zeros((count, 3, side, side), np.uint8)
    planes[:, 0] = np.arange(first, first + count)[:, None, None]
    planes[:, 1, 1, 0], planes[:, 2, 0, 1] = 50, 60
    labels = [(first + i) * 7 % 1000 + base for i in range(count)]
    return {"data": planes.reshape(count, -1), "labels": labels, "mean": planes.mean(0).ravel()}


def write(path, content: dict, protocol: int | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if protocol is None:
        np.savez(path.with_name(path.name + ".npz"), data=content["data"], labels=np.array(content["labels"]))
    else:
        path.write_bytes(pickle.dumps(content, protocol=protocol))


def write_all(folder, side: int, protocol: int | None = 4) -> None:
    for number in range(10):
        write(folder / f"train_data_batch_{number + 1}", batch(side, 3 * number), protocol)
    write(folder / "val_data", batch(side, 200), protocol)


def numbers(data) -> list[int]:
    return [int(data.pixels(i)[0, 0, 0]) for i in range(len(data))]


@pytest.mark.parametrize("protocol", [2, 4, None])
@pytest.mark.parametrize(
    ("side", "train", "val"), [(32, ImageNet32Train, ImageNet32Validation), (64, ImageNet64Train, ImageNet64Validation)]
)
def test_public_batch_files(tmp_path, protocol, side, train, val):
    write_all(tmp_path, side, protocol)
    data = train(size=side, root=tmp_path)
    assert numbers(data) == list(range(30)) and data.num_classes == 1000
    assert data.labels.tolist() == [7 * i for i in range(30)] and data[4]["class_label"] == 28
    image = np.rint((data[4]["image"] + 1) * 127.5)
    assert image.shape == (side, side, 3) and image[1, 0].tolist() == [4, 50, 0] and image[0, 1].tolist() == [4, 0, 60]
    assert numbers(val(root=tmp_path)) == [200, 201, 202]


@pytest.mark.parametrize("place", ["ImageNet32", "ImageNet32/Imagenet32_train", "Imagenet32_train", "imagenet32"])
def test_folders(tmp_path, place, monkeypatch):
    write_all(tmp_path / place, 32)
    monkeypatch.setenv("LDM_DATA_ROOT", str(tmp_path))
    assert len(ImageNet32Train(config={"size": 8})) == 30


def test_some_of_the_files(tmp_path):
    write_all(tmp_path, 32)
    assert numbers(ImageNet32Train(root=tmp_path, batches=[2, 10])) == [3, 4, 5, 27, 28, 29]
    before = ImageNet32Train(root=tmp_path).fingerprint()
    assert (
        before
        == ImageNet32Train(root=tmp_path).fingerprint()
        != ImageNet32Train(root=tmp_path, batches=[1]).fingerprint()
    )
    for wrong in ([], [0], [11]):
        with pytest.raises(UserError, match="numbered 1 to 10"):
            ImageNet32Train(root=tmp_path, batches=wrong)
    with pytest.raises(UserError, match="evaluation"):
        ImageNet32Validation(root=tmp_path, flip_p=0.5)


def test_labels_that_begin_at_nought_are_kept(tmp_path):
    write(tmp_path / "val_data", {**batch(32, 0), "labels": [0, 5, 999]}, 4)
    assert ImageNet32Validation(root=tmp_path).labels.tolist() == [0, 5, 999]


class Evil:
    def __reduce__(self):
        return (print, ("ran",))


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"data": batch(32, 0)["data"], "labels": [0, 5, 1000]}, "labels go from 0 to 1000"),
        ({"data": batch(64, 0)["data"], "labels": [1, 2, 3]}, "expected rows of 3 x 32 x 32 bytes"),
        ({"data": batch(32, 0)["data"], "labels": [1, 2]}, "with 2 labels"),
        ({"data": batch(32, 0)["data"] / 255, "labels": [1, 2, 3]}, "float64"),
        ({"images": 1}, "not a batch of 'data' and 'labels'"),
        ([1], "not a batch of 'data' and 'labels'"),
        ({"data": Evil(), "labels": [1]}, "builtins.print"),
    ],
)
def test_other_content_is_refused_and_not_run(tmp_path, content, line, capsys):
    (tmp_path / "val_data").write_bytes(pickle.dumps(content))
    with pytest.raises(UserError) as caught:
        ImageNet32Validation(root=tmp_path)
    assert line in str(caught.value) and "\n" not in str(caught.value)
    assert "ran" not in capsys.readouterr().out


def test_damaged_files(tmp_path):
    for name, content in (("val_data", b"no pickle"), ("val_data", b""), ("val_data.npz", b"no archive")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}:? "):
            ImageNet32Validation(root=tmp_path)
        (tmp_path / name).unlink()


def test_missing_files_say_which_where_and_how(tmp_path):
    write_all(tmp_path, 32)
    (tmp_path / "train_data_batch_7").unlink()
    with pytest.raises(
        UserError, match=r"no train_data_batch_7 \(.*1 of 10 files missing\).*image-net.org.*LDM_DATA_ROOT"
    ):
        ImageNet32Train(root=tmp_path)
    with pytest.raises(UserError, match="no val_data") as caught:
        ImageNet64Validation(root=tmp_path / "none")
    assert str(tmp_path) in str(caught.value)
