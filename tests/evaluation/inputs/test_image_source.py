"""Sample files, folders and dataset classes all become batches of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.in_memory_dataset import InMemoryDataset
from ldm.errors import UserError
from ldm.evaluation.inputs.image_source import ImageSource, is_statistics_file, open_images
from ldm.evaluation.inputs.sources import load_labelled
from ldm.evaluation.metrics.statistics_files import statistics_of
from ldm.samples import SampleSet

HERE = __name__


class Toy:
    def __init__(self, size: int = 4) -> None:
        self.size = size

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> dict:
        return {"image": np.full((self.size, self.size, 1), index / 10, np.float32), "class_label": index % 2}


def everything(source: ImageSource, batch_size: int = 3) -> tuple[torch.Tensor, list[int] | None]:
    batches = list(source.batches(batch_size))
    assert all(len(images) <= batch_size for images, _ in batches)
    labels = [label for _, part in batches if part is not None for label in part.tolist()]
    return torch.cat([images for images, _ in batches]), labels or None


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def test_sample_files_dataset_classes_and_passes(tmp_path: Path) -> None:
    samples = SampleSet(torch.rand(7, 1, 4, 4), torch.arange(7), {"seed": 3})
    samples.save(tmp_path / "a.pt")
    source = open_images(str(tmp_path / "a.pt"))
    for _ in range(2):  # a source can be gone through again
        images, labels = everything(source)
        assert torch.equal(images, samples.images) and labels == list(range(7))
    assert source.meta["seed"] == 3
    source = open_images(f"{HERE}.Toy", ["size:5"])
    images, labels = everything(source)
    assert images.shape == (7, 1, 5, 5) and labels == [0, 1, 0, 1, 0, 1, 0] and source.name.endswith("Toy size:5")


def test_npz_samples_and_statistics_are_told_apart(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((5, 4, 4, 3), np.uint8), y=np.arange(5))
    np.savez(tmp_path / "s.npz", mu=np.zeros(3), sigma=np.eye(3))
    assert everything(open_images(str(tmp_path / "x.npz")))[0].shape == (5, 3, 4, 4)
    assert is_statistics_file(tmp_path / "s.npz") and not is_statistics_file(tmp_path / "x.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "s.npz").read_bytes()[:-30])
    (tmp_path / "text.npz").write_text("hello")
    assert not is_statistics_file(tmp_path / "cut.npz") and not is_statistics_file(tmp_path / "text.npz")
    assert not is_statistics_file(tmp_path / "none.npz") and not is_statistics_file(tmp_path)
    with pytest.raises(UserError, match="statistics, not images"):
        open_images(str(tmp_path / "s.npz"))


def test_guided_diffusions_files(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", pixels, np.arange(5))
    np.savez(tmp_path / "reference.npz", arr_0=pixels, mu=np.zeros(3), sigma=np.eye(3))
    images, labels = everything(open_images(str(tmp_path / "a.npz")))
    assert torch.allclose(images, torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1)
    assert labels == list(range(5)) == load_labelled(str(tmp_path / "a.npz")).labels.tolist()
    again, _ = everything(open_images(str(tmp_path / "reference.npz")))
    assert torch.equal(again, images)
    assert statistics_of(str(tmp_path / "reference.npz")).mu.shape == (3,)
    records = InMemoryDataset(tmp_path / "a.npz")
    assert records[3]["class_label"] == 3 and np.array_equal(records.pixels(3), pixels[3])


def test_flat_folder_keeps_bytes_exactly(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 3))
    for index, image in enumerate(pixels):
        write(tmp_path / f"{index}.png", image)
    (tmp_path / "notes.txt").write_text("not an image")
    images, labels = everything(open_images(str(tmp_path)))
    assert labels is None
    assert torch.equal(((images + 1) * 127.5).round().permute(0, 2, 3, 1).int(), torch.from_numpy(pixels).int())


def test_subfolders_are_classes_and_grey_stays_grey(tmp_path: Path) -> None:
    for name, value in (("cat", 10), ("ape", 20), ("cat", 30)):
        write(tmp_path / name / f"{value}.png", np.full((4, 4), value))
    source = open_images(str(tmp_path))
    images, labels = everything(source)
    assert source.class_names == ("ape", "cat") and labels == [0, 1, 1] and images.shape == (3, 1, 4, 4)
    write(tmp_path / "ape" / "z.png", np.zeros((4, 4, 3)))
    assert everything(open_images(str(tmp_path)))[0].shape == (4, 3, 4, 4)


def test_sizes_in_a_folder(tmp_path: Path) -> None:
    write(tmp_path / "a.png", np.zeros((4, 4)))
    write(tmp_path / "b.png", np.zeros((8, 8)))
    with pytest.raises(UserError, match="different sizes.*size:N"):
        everything(open_images(str(tmp_path)))
    source = open_images(str(tmp_path), ["size:6"])
    assert everything(source)[0].shape == (2, 1, 6, 6) and "shorter side" in source.name


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_text("hello")
    write(tmp_path / "good" / "a.png", np.zeros((4, 4)))
    for name, settings, words in (
        ("empty", [], "no images in .*empty"),
        ("bad", [], r"a\.png: cannot be read as an image"),
        ("good", ["split:test"], "one setting, such as size:32"),
        ("none.pt", [], "no such file"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            open_images(str(tmp_path / name), settings)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="at least 1"):
        everything(open_images(str(tmp_path / "good")), 0)
