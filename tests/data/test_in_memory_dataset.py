from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ldm.data.base import ArrayDataset
from ldm.data.in_memory_dataset import InMemoryDataset, cache_dataset
from ldm.errors import UserError
from ldm.samples import SampleSet

BYTES = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(6) % 3


def floats() -> torch.Tensor:
    return torch.from_numpy(BYTES / np.float32(127.5) - np.float32(1)).float()


def saved(tmp_path, content, name: str = "a.pt"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("as_bytes", [False, True])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_is_cached_comes_back(tmp_path, as_bytes, num_workers):
    source = ArrayDataset(BYTES, LABELS)
    path = tmp_path / "new" / "a.pt"
    count = cache_dataset(source, path, batch_size=4, num_workers=num_workers, as_bytes=as_bytes, progress=False)
    data = InMemoryDataset(path)
    assert count == len(data) == 6 and data.num_classes == 3
    content = torch.load(path, weights_only=True)
    assert content["image"].shape == (6, 8, 8, 3) and content["class_label"].tolist() == LABELS.tolist()
    assert content["image"].dtype == (torch.uint8 if as_bytes else torch.float32)
    for index in range(6):
        one, two = data[index], source[index]
        assert np.array_equal(one["image"], two["image"]) and one["image"].dtype == np.float32
        assert one["class_label"] == two["class_label"] and type(one["class_label"]) is int


class Ragged(ArrayDataset):
    def pixels(self, index: int) -> np.ndarray:
        return super().pixels(index)[: 4 + index]

    def annotations(self, index: int) -> dict:
        return {**super().annotations(index), "name": f"{index}.png", "weight": 0.5 * index}


def test_images_of_different_sizes_and_other_fields(tmp_path):
    source = Ragged(BYTES[:4], LABELS[:4])
    cache_dataset(source, tmp_path / "a.pt", progress=False)
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert content["metadata"].tolist()[1] == [4 * 8 * 3, 5 * 8 * 3, 5, 8, 3] and "name" not in content
    with pytest.raises(UserError, match="4 different sizes; give size="):
        InMemoryDataset(tmp_path / "a.pt")
    data = InMemoryDataset(tmp_path / "a.pt", transform=np.asarray)
    for index in range(4):
        assert np.array_equal(data[index]["image"], source[index]["image"])
        assert float(data[index]["weight"]) == 0.5 * index
    batch = next(iter(DataLoader(InMemoryDataset(tmp_path / "a.pt", size=4), batch_size=4)))
    assert batch["image"].shape == (4, 4, 4, 3) and batch["class_label"].dtype == torch.int64


def test_sizes_channels_and_the_older_spelling(tmp_path):
    path = saved(tmp_path, {"image": floats(), "class_label": torch.from_numpy(LABELS)})
    wanted = ArrayDataset(BYTES, LABELS, 4)[2]["image"]
    for options in ({"size": 4}, {"config": {"size": 4}}):
        assert np.array_equal(InMemoryDataset(path, **options)[2]["image"], wanted)
    assert InMemoryDataset(path, size=8)[2]["image"].tobytes() == floats()[2].numpy().tobytes()
    assert InMemoryDataset(path, channels=1)[2]["image"].shape == (8, 8, 1)
    grey = saved(tmp_path, {"image": floats()[..., :1]}, "b.pt")
    assert InMemoryDataset(grey)[0]["image"].shape == (8, 8, 1)
    assert InMemoryDataset(grey, channels=3)[0]["image"].shape == (8, 8, 3)
    mirrored = InMemoryDataset(path, flip_p=1.0)[2]["image"]
    assert np.array_equal(mirrored, floats()[2].numpy()[:, ::-1])


def test_npz_and_sample_files(tmp_path):
    np.savez(tmp_path / "a.npz", x=BYTES, y=LABELS)
    data = InMemoryDataset(tmp_path / "a.npz")
    assert np.array_equal(data[3]["image"], ArrayDataset(BYTES, LABELS)[3]["image"]) and data[3]["class_label"] == 0
    SampleSet(floats().permute(0, 3, 1, 2), torch.from_numpy(LABELS), {"seed": 1}).save(tmp_path / "s.pt")
    data = InMemoryDataset(tmp_path / "s.pt")
    assert np.allclose(data[3]["image"], floats()[3]) and data.labels.tolist() == LABELS.tolist()
    assert set(InMemoryDataset(saved(tmp_path, {"image": floats()}))[0]) == {"image"}


def test_a_transform_is_applied(tmp_path):
    path = saved(tmp_path, {"image": floats()})
    data = InMemoryDataset(path, transform=lambda image: image[:2] * 0)
    assert data[0]["image"].shape == (2, 8, 3) and not data[0]["image"].any() and not data.deterministic
    node = {"target": "torchvision.transforms.ToTensor"}
    assert InMemoryDataset(path, transform=node)[0]["image"].shape == (3, 8, 8)
    with pytest.raises(UserError, match="cannot be called"):
        InMemoryDataset(path, transform=3)


def test_the_fingerprint_follows_the_file(tmp_path):
    path = saved(tmp_path, {"image": floats()})
    before = InMemoryDataset(path).fingerprint()
    assert before == InMemoryDataset(path).fingerprint() != InMemoryDataset(path, size=4).fingerprint()
    saved(tmp_path, {"image": floats()[:5]})
    assert InMemoryDataset(path).fingerprint() != before


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ([1], "no tensor 'image'"),
        ({"images": floats()}, r"it holds \['images'\]"),
        ({"image": floats().long()}, "type torch.int64"),
        ({"image": floats()[0, 0]}, "shape"),
        ({"image": torch.zeros(6, 8, 8, 4)}, "shape"),
        ({"image": floats()[:0]}, "shape"),
        ({"image": floats(), "class_label": torch.arange(5)}, "'class_label' has 5 rows, not 6"),
        ({"image": floats(), "class_label": torch.rand(6)}, "whole numbers"),
        ({"image": floats(), "class_label": -torch.arange(6)}, "goes down to -5"),
        ({"image": floats(), "weight": torch.zeros(5)}, "'weight' has 5 rows, not 6"),
        ({"image": floats().flatten(), "metadata": torch.tensor([[0, 200, 8, 8, 3]])}, "does not fit"),
        ({"image": floats().flatten(), "metadata": torch.tensor([[1100, 192, 8, 8, 3]])}, "does not fit"),
        ({"image": floats(), "metadata": torch.tensor([[0, 192, 8, 8, 3]])}, "does not fit"),
    ],
)
def test_other_content_is_one_line(tmp_path, content, line):
    with pytest.raises(UserError, match=line) as caught:
        InMemoryDataset(saved(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_another_scale_is_noticed(tmp_path):
    for values, words in ((floats() * 2, r"pixel values lie in \[-2, 2\]"), (floats() * float("nan"), "hold NaN")):
        with pytest.raises(UserError, match=f"a.pt: .*{words}"):
            InMemoryDataset(saved(tmp_path, {"image": values}))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [0.0, -0.5])
def test_one_file_has_one_range_for_every_reader(tmp_path, kind, shift):
    """Floats in [0, 1] and in [-1, 1], of any precision, are the same pixels to training and to evaluation."""
    images = (torch.rand(9, 6, 6, 3, generator=torch.Generator().manual_seed(1)) + shift) * (2 if shift else 1)
    images[0] = 0.75  # alone, this image could be of either range
    path = saved(tmp_path, {"image": images.to(kind), "class_label": torch.arange(9)})
    data, samples = InMemoryDataset(path), SampleSet.load(path)
    expected = images.to(kind).float() if shift else images.to(kind).float() * 2 - 1
    for index in range(9):
        assert torch.allclose(torch.from_numpy(data[index]["image"]), expected[index], atol=1e-6)
        assert torch.allclose(samples.images[index].permute(1, 2, 0), expected[index], atol=1e-6)


def test_what_cache_dataset_writes_states_its_range_and_classes(tmp_path):
    source = ArrayDataset(np.full((4, 8, 8, 3), 200, np.uint8), LABELS[:4])  # no negative value in [-1, 1]
    source.class_names = ["ape", "cat", "dog", "eel"]
    cache_dataset(source, tmp_path / "a.pt", progress=False)
    data = InMemoryDataset(tmp_path / "a.pt")
    assert np.allclose(data[0]["image"], source[0]["image"]) and data.class_names == source.class_names


@pytest.mark.parametrize("form", ["strides", "bomb", "pipe"])
def test_files_that_claim_more_than_they_hold(tmp_path, form):
    path = tmp_path / ("a.npz" if form == "bomb" else "a.pt")
    if form == "strides":
        torch.save({"image": torch.zeros(1).expand(10**7, 8, 8, 3)}, path)
    elif form == "bomb":
        np.savez_compressed(path, x=np.zeros((30_000, 32, 32, 3), np.uint8))
    else:
        os.mkfifo(path)
    for reader in (InMemoryDataset, SampleSet.load):
        with pytest.raises(UserError, match="claims|would unpack|a pipe or a device") as caught:
            reader(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path):
    for name in ("none.pt", "none.npz"):
        with pytest.raises(UserError, match="no such file; scripts/cache_data.py"):
            InMemoryDataset(tmp_path / name)
    for name in ("text.pt", "text.npz"):
        (tmp_path / name).write_text("text")
        with pytest.raises(UserError, match=f"{name}: not a"):
            InMemoryDataset(tmp_path / name)
    np.savez(tmp_path / "b.npz", z=BYTES)
    with pytest.raises(UserError, match="no 'x'"):
        InMemoryDataset(tmp_path / "b.npz")


def test_what_cannot_be_cached(tmp_path):
    output = tmp_path / "a.pt"
    source = ArrayDataset(BYTES, LABELS)
    for arguments, line in (
        ({"dataset": ArrayDataset(BYTES[:0], LABELS[:0])}, "empty"),
        ({"dataset": [{"pixels": 1}]}, "item 0 of the data set has no 'image'"),
        ({"dataset": source, "batch_size": 0}, "batch size 0"),
        ({"dataset": [{"image": floats()[0].numpy() * 0.99}], "as_bytes": True}, "between the 256 levels"),
    ):
        with pytest.raises(UserError, match=line):
            cache_dataset(output=output, progress=False, **arguments)
    assert list(tmp_path.iterdir()) == []
