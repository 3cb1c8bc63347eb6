"""Samples in other programs' forms, read back by our own readers and by plain numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.commands.table import dispatch
from ldm.data.folder import ImageFolder
from ldm.data.parquet import ParquetImages
from ldm.errors import UserError
from ldm.evaluation.inputs.image_source import open_images
from ldm.samples import SampleSet

NAMES = ["--class-names", "cat", "dog"]


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Three colour images as bytes, saved as samples.pt with labels 1 0 1."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    signed = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    SampleSet(signed, torch.tensor([1, 0, 1])).save("samples.pt")
    return pixels


def test_gen_npz(samples: np.ndarray) -> None:
    dispatch(["export", "samples.pt", "gen.npz"])
    with np.load("gen.npz") as file:
        assert file["x"].dtype == np.uint8 and np.array_equal(file["x"], samples)
        assert file["y"].tolist() == [1, 0, 1]


def test_image_folder(samples: np.ndarray) -> None:
    dispatch(["export", "samples.pt", "out", *NAMES])
    assert np.array_equal(np.asarray(Image.open("out/dog/2.png")), samples[2])
    read = ImageFolder("out")
    assert read.class_names == ["cat", "dog"] and read.labels.tolist() == [0, 1, 1]
    with pytest.raises(UserError, match="out exists"):
        dispatch(["export", "samples.pt", "out", *NAMES])
    with pytest.raises(UserError, match="'../up' cannot be the name of a folder"):
        dispatch(["export", "samples.pt", "other", "--class-names", "a", "../up"])
    assert sorted(path.name for path in Path().iterdir()) == ["out", "samples.pt"]


def test_parquet(samples: np.ndarray) -> None:
    dispatch(["export", "samples.pt", "samples.parquet", *NAMES])
    read = ParquetImages("samples.parquet")
    assert np.array_equal(read.pixels(1), samples[1])
    assert read.labels.tolist() == [1, 0, 1] and list(read.class_names) == ["cat", "dog"]
    with pytest.raises(UserError, match="class 1, and 1 class names were given"):
        dispatch(["export", "samples.pt", "b.parquet", "--class-names", "cat"])


def test_names_in_the_file_name_the_folders(samples: np.ndarray) -> None:
    loaded = SampleSet.load("samples.pt")
    SampleSet(loaded.images, loaded.labels, {"class_names": ["T-shirt/top", "dog"]}).save("named.pt")
    dispatch(["export", "named.pt", "out"])
    assert sorted(path.name for path in Path("out").iterdir()) == ["T-shirt-top", "dog"]
    dispatch(["export", "named.pt", "other", *NAMES])
    assert sorted(path.name for path in Path("other").iterdir()) == sorted(NAMES[1:])


@pytest.mark.parametrize("names", [5, "cat", [1, 2], {"a": 1}])
def test_names_that_are_no_list_of_names(samples: np.ndarray, names: object) -> None:
    loaded = SampleSet.load("samples.pt")
    SampleSet(loaded.images, loaded.labels, {"class_names": names}).save("named.pt")
    with pytest.raises(UserError, match="no list of names"):
        dispatch(["export", "named.pt", "out"])
    with pytest.raises(UserError, match="no list of names"):
        open_images("named.pt")


def test_a_name_that_stands_twice_is_refused(samples: np.ndarray) -> None:
    with pytest.raises(UserError, match="a name twice"):
        dispatch(["export", "samples.pt", "out", "--class-names", "cat", "cat"])


def test_a_class_without_images_keeps_its_number(samples: np.ndarray) -> None:
    read = SampleSet.load("samples.pt")
    SampleSet(read.images, torch.tensor([3, 11, 3])).save("gaps.pt")
    dispatch(["export", "gaps.pt", "numbers"])
    dispatch(["export", "samples.pt", "names", "--class-names", "ant", "bee", "cow"])
    images, labels = next(open_images("numbers").batches(9))
    assert labels is not None and labels.tolist() == [3, 3, 11]
    assert torch.allclose(images[2], read.images[1], atol=1e-6)
    assert open_images("names").class_names == ("ant", "bee", "cow")


@pytest.mark.parametrize("out", ["out.parquet", "out.npz", "out"])
def test_a_name_that_is_no_line_of_text_is_refused(samples: np.ndarray, out: str) -> None:
    for name in ("\udcff", "a\nb"):
        with pytest.raises(UserError, match="is not one line of text"):
            dispatch(["export", "samples.pt", out, "--class-names", name, "dog"])
    assert not Path(out).exists()


@pytest.mark.parametrize("out", ["out.jpg", "out.PNG", "out.zip"])
def test_a_name_of_another_kind_of_file_does_not_become_a_folder(samples: np.ndarray, out: str) -> None:
    with pytest.raises(UserError, match=r"cannot tell what to write; name a folder, or a file that ends in \.npz"):
        dispatch(["export", "samples.pt", out])
    assert not Path(out).exists()
