"""The sample-file format: what is written comes back, older forms are understood, broken files are named."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.in_memory_dataset import InMemoryDataset
from ldm.errors import UserError
from ldm.samples import SampleSet, first_images, grid, iter_batches, save_grid


def random_images(count: int = 6, channels: int = 3, size: int = 8) -> torch.Tensor:
    return torch.rand(count, channels, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_round_trip_keeps_pixels_labels_and_meta(tmp_path: Path) -> None:
    meta = {"config": "a.yaml", "seed": 3, "scale": 1.5, "classes": [0, 1], "uncond": None}
    SampleSet(random_images(), torch.arange(6), meta).save(tmp_path / "a.pt")
    loaded = SampleSet.load(tmp_path / "a.pt")
    assert torch.equal(loaded.images, random_images())
    assert torch.equal(loaded.labels, torch.arange(6)) and loaded.labels.dtype == torch.int64
    assert loaded.meta == meta
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_file_is_plain_tensors_under_the_lineage_keys(tmp_path: Path) -> None:
    SampleSet(random_images(), torch.arange(6)).save(tmp_path / "a.pt")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert set(content) == {"image", "class_label", "meta"}
    assert content["image"].dtype == torch.float32 and content["image"].shape == (6, 3, 8, 8)


def test_unlabelled_set_has_no_label_key(tmp_path: Path) -> None:
    SampleSet(random_images()).save(tmp_path / "a.pt")
    assert "class_label" not in torch.load(tmp_path / "a.pt", weights_only=True)
    assert SampleSet.load(tmp_path / "a.pt").labels is None


def test_overshoot_and_half_precision_are_brought_to_form() -> None:
    samples = SampleSet((random_images() * 1.2).double(), torch.arange(6, dtype=torch.int32))
    assert samples.images.dtype == torch.float32 and samples.labels.dtype == torch.int64
    assert samples.images.max() == 1 and samples.images.min() == -1


def test_nonnegative_images_of_a_new_file_are_not_rescaled(tmp_path: Path) -> None:
    SampleSet(random_images().abs()).save(tmp_path / "a.pt")
    assert torch.equal(SampleSet.load(tmp_path / "a.pt").images, random_images().abs())


def test_subset_takes_labels_along() -> None:
    part = SampleSet(random_images(), torch.arange(6), {"seed": 1}).subset(torch.tensor([4, 1]))
    assert torch.equal(part.images, random_images()[[4, 1]])
    assert part.labels.tolist() == [4, 1] and part.meta == {"seed": 1} and len(part) == 2


# older forms


def load_dict(tmp_path: Path, content: object) -> SampleSet:
    torch.save(content, tmp_path / "old.pt")
    return SampleSet.load(tmp_path / "old.pt")


def test_old_zero_to_one_file_is_rescaled_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        loaded = load_dict(tmp_path, {"image": random_images().abs()})
    assert torch.allclose(loaded.images, random_images().abs() * 2 - 1)
    assert "[0, 1]" in caplog.text and "old.pt" in caplog.text


@pytest.mark.parametrize("shape", [(6, 1, 3, 8, 8), (2, 3, 3, 8, 8)])
def test_old_five_dimensional_file_is_flattened(tmp_path: Path, shape: tuple[int, ...]) -> None:
    loaded = load_dict(
        tmp_path, {"image": random_images().reshape(shape), "class_label": torch.arange(6).reshape(shape[:2])}
    )
    assert torch.equal(loaded.images, random_images()) and loaded.labels.tolist() == list(range(6))


def test_uint8_channels_last_and_flat_grey(tmp_path: Path) -> None:
    bytes_ = torch.arange(6 * 8 * 8 * 3, dtype=torch.int64).remainder(256).to(torch.uint8).reshape(6, 8, 8, 3)
    loaded = load_dict(tmp_path, {"image": bytes_})
    assert torch.allclose(loaded.images, bytes_.permute(0, 3, 1, 2) / 127.5 - 1)
    assert load_dict(tmp_path, {"image": random_images()[:, 0]}).images.shape == (6, 1, 8, 8)


def test_npz_of_the_wide_resnet_script(tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", x=array, y=np.arange(5))
    loaded = SampleSet.load(tmp_path / "a.npz")
    assert np.allclose(loaded.images.permute(0, 2, 3, 1).numpy(), array / 127.5 - 1, atol=1e-6)
    assert loaded.labels.tolist() == [0, 1, 2, 3, 4]


# broken files


class Evil:
    def __reduce__(self):
        return (print, ("ran",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"images": random_images()}, "no 'image'"),
        (random_images(), "no 'image'"),
        ({"image": "text"}, "expected a tensor"),
        ({"image": random_images(6, 4)}, "shape"),
        ({"image": random_images()[:0]}, "no images"),
        ({"image": torch.full((3, 3, 4, 4), float("nan"))}, "3 of 3 images hold NaN"),
        ({"image": random_images().abs() * 255}, "pixel values lie in"),
        ({"image": (random_images().abs() * 255).long()}, "type torch.int64"),
        ({"image": random_images(), "class_label": torch.arange(5)}, "5 labels for 6 images"),
        ({"image": random_images(), "class_label": torch.rand(6)}, "whole numbers"),
        ({"image": random_images(), "class_label": -torch.arange(6)}, "class numbers from 0"),
        ({"image": random_images(), "meta": 3}, "'meta' is a int"),
        ({"class_label": torch.arange(6), "meta": {}}, "no 'image' in this file (it holds ['class_label', 'meta'])"),
        ({"image": random_images() * 5, "meta": {}}, "pixel values lie in"),
        ({"image": random_images(), "class_label": "six"}, "'class_label' is a str"),
        ({"image": random_images(), "other": Evil()}, "not a readable sample file"),
    ],
)
def test_bad_content_is_one_line_that_names_the_file(
    tmp_path: Path, content: object, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match="old.pt") as caught:
        load_dict(tmp_path, content)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["missing.pt", "missing.npz", "text.pt", "text.npz", "wrong.npz"])
def test_bad_files_are_one_line_that_names_the_file(tmp_path: Path, name: str) -> None:
    for text in ("text.pt", "text.npz"):
        (tmp_path / text).write_text("no samples here")
    np.savez(tmp_path / "wrong.npz", random_images=np.zeros(3))
    with pytest.raises(UserError, match=name) as caught:
        SampleSet.load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_truncated_file(tmp_path: Path) -> None:
    SampleSet(random_images()).save(tmp_path / "a.pt")
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:1000])
    with pytest.raises(UserError, match="not a readable"):
        SampleSet.load(tmp_path / "a.pt")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_archive(tmp_path: Path, save) -> None:
    save(tmp_path / "a.npz", x=np.random.default_rng(0).random((5, 8, 8, 3)))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(UserError, match="a.npz' is damaged"):
        iter_batches(tmp_path / "a.npz", 2)


def test_guided_diffusions_form(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", pixels, np.arange(6))
    np.savez(tmp_path / "b.npz", pixels)
    found = SampleSet.load(tmp_path / "a.npz", need_labels=True)
    assert torch.allclose(found.images, torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1)
    assert found.labels.tolist() == list(range(6)) and SampleSet.load(tmp_path / "b.npz").labels is None
    np.savez(tmp_path / "c.npz", images=pixels)
    with pytest.raises(UserError, match="expected 'x' .* or 'arr_0' and 'arr_1'"):
        SampleSet.load(tmp_path / "c.npz")


def test_masks_of_zero_and_one_are_not_read_as_black(tmp_path: Path) -> None:
    masks = (random_images(40) > 0).permute(0, 2, 3, 1).numpy().astype(np.uint8)
    np.savez(tmp_path / "a.npz", x=masks)
    torch.save({"image": torch.from_numpy(masks)}, tmp_path / "a.pt")
    for name in ("a.npz", "a.pt"):
        with pytest.raises(UserError, match="uint8 images of 0 and 1 only"):
            SampleSet.load(tmp_path / name)
        with pytest.raises(UserError, match="uint8 images of 0 and 1 only"):
            InMemoryDataset(tmp_path / name)
    np.savez(tmp_path / "b.npz", x=masks * 255)
    assert set(SampleSet.load(tmp_path / "b.npz").images.unique().tolist()) == {-1.0, 1.0}
    np.savez(tmp_path / "c.npz", x=masks * 0)
    assert SampleSet.load(tmp_path / "c.npz").images.max() == -1


def test_labels_that_no_model_has(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 4, 4, 3), np.uint8), y=np.array([0, 2**62]))
    with pytest.raises(UserError, match="labels go up to"):
        SampleSet.load(tmp_path / "a.npz")


def test_labels_can_be_demanded(tmp_path: Path) -> None:
    SampleSet(random_images()).save(tmp_path / "a.pt")
    with pytest.raises(UserError, match="no labels"):
        SampleSet.load(tmp_path / "a.pt", need_labels=True)


def test_meta_must_be_plain() -> None:
    with pytest.raises(UserError, match=r"meta\.device"):
        SampleSet(random_images(), None, {"device": torch.device("cpu")})


# reading in batches


def whole(path: Path, batch_size: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    images, labels = zip(*iter_batches(path, batch_size), strict=True)
    assert all(len(part) == batch_size for part in images[:-1])
    assert all(part.dtype == torch.float32 and part.is_contiguous() for part in images)
    return torch.cat(images), None if labels[0] is None else torch.cat(labels)


@pytest.mark.parametrize("batch_size", [1, 4, 6, 100])
@pytest.mark.parametrize("labelled", [True, False])
def test_batches_are_the_file_in_order(tmp_path: Path, batch_size: int, labelled: bool) -> None:
    SampleSet(random_images(), torch.arange(6) if labelled else None, {"seed": 1}).save(tmp_path / "a.pt")
    images, labels = whole(tmp_path / "a.pt", batch_size)
    assert torch.equal(images, random_images())
    assert labels is None if not labelled else labels.tolist() == list(range(6))


BYTES = torch.arange(6 * 8 * 8 * 3).remainder(256).to(torch.uint8).reshape(6, 8, 8, 3)


@pytest.mark.parametrize(
    "content",
    [
        {"image": random_images().reshape(2, 3, 3, 8, 8), "class_label": torch.arange(6).reshape(2, 3)},
        {"image": random_images().abs()},
        {"image": random_images() * 1.2, "meta": {}},
        {"image": BYTES},
        {"image": BYTES.permute(0, 3, 1, 2)},
        {"image": random_images()[:, 0].double()},
        {"image": random_images().half(), "meta": {}},
        {"image": random_images()[::2]},
    ],
)
@pytest.mark.parametrize("form", ["zip", "before torch 1.6", "remapped"])
def test_batches_of_every_form_are_what_loading_gives(
    tmp_path: Path, content: dict, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "remapped":
        monkeypatch.setattr("ldm.samples.reader.REMAP_BYTES", 0)
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=form != "before torch 1.6")
    loaded = SampleSet.load(tmp_path / "a.pt")
    images, labels = whole(tmp_path / "a.pt", 2)
    assert torch.equal(images, loaded.images)
    assert labels is None if loaded.labels is None else torch.equal(labels, loaded.labels)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kind", ["uint8", "float32", ">f4", "by columns"])
def test_batches_of_npz(tmp_path: Path, save, kind: str) -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    stored = np.asfortranarray(array) if kind == "by columns" else array
    if kind.endswith("4") or kind == "float32":
        stored = (array / 127.5 - 1).astype(kind)
    save(tmp_path / "a.npz", x=stored, y=np.arange(5))
    images, labels = whole(tmp_path / "a.npz", 2)
    assert np.allclose(images.permute(0, 2, 3, 1).numpy(), array / 127.5 - 1, atol=1e-6)
    assert labels.tolist() == [0, 1, 2, 3, 4]


def test_a_bad_image_is_found_before_the_first_batch(tmp_path: Path) -> None:
    images = random_images()
    images[4, 1, 2, 3] = float("inf")
    torch.save({"image": images, "meta": {}}, tmp_path / "a.pt")
    with pytest.raises(UserError, match="a.pt: 1 of 6 images hold NaN or infinite values"):
        iter_batches(tmp_path / "a.pt", 2)
    for size in (0, -1):
        with pytest.raises(UserError, match="batch size"):
            iter_batches(tmp_path / "a.pt", size)


def test_first_images(tmp_path: Path) -> None:
    SampleSet(random_images()).save(tmp_path / "a.pt")
    assert torch.equal(first_images(tmp_path / "a.pt", 2), random_images()[:2])
    assert len(first_images(tmp_path / "a.pt", 100)) == 6
    torch.save({"image": BYTES}, tmp_path / "b.pt")
    assert torch.equal(first_images(tmp_path / "b.pt", 3), SampleSet.load(tmp_path / "b.pt").images[:3])


# image grids


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_grid_puts_each_image_in_its_cell(channels: int, mode: str) -> None:
    images = torch.linspace(-1, 1, 5).view(5, 1, 1, 1).expand(5, channels, 4, 4)
    sheet = grid(images, columns=2, padding=1)
    assert sheet.mode == mode and sheet.size == (2 * 5 + 1, 3 * 5 + 1)
    levels = [np.asarray(sheet)[1 + 5 * (i // 2), 1 + 5 * (i % 2)].flat[0] for i in range(5)]
    assert levels == [0, 64, 128, 191, 255]


def test_save_grid_writes_a_image_with_captions(tmp_path: Path) -> None:
    save_grid(-torch.ones(3, 1, 16, 16), tmp_path / "a.png", columns=3, labels=torch.arange(3))
    with Image.open(tmp_path / "a.png") as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (2 + 16 + 12 + 2, 3 * 18 + 2)
    assert pixels[:18].max() == 0 and pixels[18:].max() > 200


def test_grid_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot tell an image format"):
        save_grid(random_images(), tmp_path / "a.data")
    with pytest.raises(UserError, match="captions"):
        grid(random_images(), labels=[1])
    with pytest.raises(UserError, match="columns"):
        grid(random_images(), columns=0)
