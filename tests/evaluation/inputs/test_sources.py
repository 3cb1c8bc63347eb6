"""Images from files and from dataset classes named on a command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import UserError
from ldm.evaluation.inputs.image_source import open_images
from ldm.evaluation.inputs.sources import (
    collect,
    dataset_batches,
    load_labelled,
    open_dataset,
    parse_settings,
    sample_batches,
    takes_size,
)
from ldm.files import require_writable
from ldm.samples import SampleSet
from tests.data.files import write_digits


class BySize:
    """Ten grey images whose pixel value tells their number."""

    def __init__(self, size: int = 4, labelled: bool = True) -> None:
        self.size, self.labelled = size, labelled

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict:
        item = {"image": np.full((self.size, self.size, 1), index / 10, np.float32)}
        return {**item, "class_label": index % 3} if self.labelled else item


class ByConfig(BySize):
    def __init__(self, config: dict | None = None) -> None:
        super().__init__((config or {})["size"])


class Broken(BySize):
    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault

    def __getitem__(self, index: int) -> object:
        item = super().__getitem__(index)
        return {
            "range": {"image": item["image"] * 255},
            "layout": {"image": item["image"].transpose(2, 0, 1).repeat(2, axis=0)},
            "ragged": {"image": item["image"][: 1 + index % 2]},
            "key": {"photo": item["image"]},
            "tuple": (item["image"], 0),
        }[self.fault]


class Empty(BySize):
    def __len__(self) -> int:
        return 0


HERE = __name__


def test_settings_nest_and_convert() -> None:
    words = ["size:32", "config.size:64", "config.root:C:/x", "flip_p:0.5", "split:train", "labels:true", "n:none"]
    assert parse_settings(words) == {
        "size": 32,
        "config": {"size": 64, "root": "C:/x"},
        "flip_p": 0.5,
        "split": "train",
        "labels": True,
        "n": None,
    }


@pytest.mark.parametrize("words", [["size"], [":3"], ["a..b:3"], ["a:1", "a:2"], ["a:1", "a.b:2"]])
def test_bad_settings_are_named(words: list[str]) -> None:
    with pytest.raises(UserError, match=words[-1].replace(".", r"\.")):
        parse_settings(words)


@pytest.mark.parametrize("name", ["BySize", "ByConfig"])
@pytest.mark.parametrize("word", ["size:6", "config.size:6"])
def test_both_spellings_of_the_size_work(name: str, word: str) -> None:
    assert open_dataset(f"{HERE}.{name}", parse_settings([word])).size == 6


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("nodots", "dotted"),
        (f"{HERE}.BySiz", "BySize"),
        ("no_such_module.X", "no_such_module"),
        ("builtins.int", "not a dataset"),
    ],
)
def test_wrong_class_names_are_one_line(target: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        open_dataset(target)
    assert "\n" not in str(caught.value)


def test_unknown_arguments_name_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'size'"):
        open_dataset(f"{HERE}.BySize", {"sice": 3})


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_in_order_and_complete(workers: int) -> None:
    batches = list(dataset_batches(BySize(), batch_size=4, num_workers=workers, progress=False))
    assert [images.shape for images, _ in batches] == [(4, 1, 4, 4), (4, 1, 4, 4), (2, 1, 4, 4)]
    assert torch.allclose(torch.cat([images for images, _ in batches])[:, 0, 0, 0], torch.arange(10) / 10)
    assert torch.cat([labels for _, labels in batches]).tolist() == [i % 3 for i in range(10)]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("range", r"pixels lie in \[0, 230\]"),
        ("layout", "height, width"),
        ("ragged", "size:32"),
        ("key", "no 'image'"),
        ("tuple", "no 'image'"),
    ],
)
def test_unusable_items_are_named(fault: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        list(dataset_batches(Broken(fault), progress=False))


def test_sample_batches_cover_the_set() -> None:
    samples = SampleSet(torch.rand(5, 1, 2, 2))
    assert torch.equal(torch.cat(list(sample_batches(samples, 2, progress=False))), samples.images)


def test_labelled_images_from_class_and_file(tmp_path: Path) -> None:
    from_class = load_labelled(f"{HERE}.BySize", ["size:5"], size=7)
    assert from_class.images.shape == (10, 1, 5, 5) and from_class.labels.tolist() == [i % 3 for i in range(10)]
    assert load_labelled(f"{HERE}.ByConfig", size=7).images.shape == (10, 1, 7, 7)
    from_class.save(tmp_path / "a.pt")
    assert torch.equal(load_labelled(str(tmp_path / "a.pt"), size=7).images, from_class.images)


def test_labelled_images_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no labels"):
        load_labelled(f"{HERE}.BySize", ["labelled:false"])
    with pytest.raises(UserError, match="no such file"):
        load_labelled(str(tmp_path / "a.pt"))
    with pytest.raises(UserError, match="is a file"):
        load_labelled(str(tmp_path / "a.pt"), ["size:32"])
    with pytest.raises(UserError, match="empty"):
        collect(Empty(), progress=False)
    with pytest.raises(UserError, match="at least 1"):
        list(dataset_batches(BySize(), batch_size=0))


def test_unwritable_outputs_fail_before_the_work(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "a.npz")
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "a.npz"):
        with pytest.raises(UserError, match="cannot write"):
            require_writable(path)


@pytest.mark.parametrize("name", ["2024", "007", "1_000"])
def test_a_folder_that_is_called_like_a_number_is_a_folder(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name / "a").mkdir(parents=True)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / name / "a" / "0.png")
    assert len(open_dataset("ldm.data.folder.ImageFolder", parse_settings([f"root:{name}"]))) == 1
    with pytest.raises(UserError, match="root is the number 100000.0.*put it in quotes"):
        open_dataset("ldm.data.folder.ImageFolder", parse_settings(["root:1e5"]))


def test_scores_on_training_files_are_marked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_digits(tmp_path)
    words = [f"root:{tmp_path}"]
    assert "from_training_files" not in load_labelled("ldm.data.mnist.MNISTVal", words).meta and not caplog.text
    for name, more in (("MNISTVal", ["holdout:10"]), ("MNISTVal", ["split:train"]), ("MNISTTrain", [])):
        caplog.clear()
        found = load_labelled(f"ldm.data.mnist.{name}", [*words, *more])
        assert found.meta["from_training_files"] and "this is no test score" in caplog.text
        assert open_images(f"ldm.data.mnist.{name}", [*words, *more]).from_training_files


class Growing(BySize):
    """Item 5 is larger than the others."""

    def __getitem__(self, index: int) -> dict:
        self.size = 5 if index == 5 else 4
        return super().__getitem__(index)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 10])
def test_several_sizes_are_refused_whatever_the_batch(batch_size: int) -> None:
    with pytest.raises(UserError, match="different shapes"):
        list(dataset_batches(Growing(), batch_size=batch_size, progress=False))


def test_labelled_images_from_a_folder(tmp_path: Path) -> None:
    for label, name in enumerate(("ant", "bee")):
        (tmp_path / "set" / name).mkdir(parents=True)
        Image.new("L", (9, 9), 255 * label).save(tmp_path / "set" / name / "0.png")
    found = load_labelled(str(tmp_path / "set"), size=6)
    assert found.images.shape[2:] == (6, 6) and found.labels is not None and found.labels.tolist() == [0, 1]
    assert found.images.flatten(1).mean(dim=1).tolist() == [-1, 1] and found.meta["class_names"] == ["ant", "bee"]
    assert load_labelled(str(tmp_path / "set"), ["size:4"], size=6).images.shape[2:] == (4, 4)
    with pytest.raises(UserError, match="ant has no labels"):
        load_labelled(str(tmp_path / "set" / "ant"))


def test_a_mistyped_folder_is_called_missing() -> None:
    for name in ("my-imagez", "a.png-folder", "imagez"):
        for look in (open_dataset, load_labelled, takes_size):
            with pytest.raises(UserError, match=f"there is no file or folder '{name}' here"):
                look(name)
