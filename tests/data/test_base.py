from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from ldm.data.base import INTERPOLATIONS, ArrayDataset, cache_home, data_root, stratified_split, to_size
from ldm.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 10, 12, 3), dtype=np.uint8)
LABELS = np.arange(6) % 3


def test_items_have_the_promised_form():
    item = ArrayDataset(IMAGES, LABELS)[4]
    assert item["image"].dtype == np.float32 and item["image"].shape == (10, 12, 3)
    assert np.allclose(item["image"], IMAGES[4] / 127.5 - 1, atol=1e-6)
    assert type(item["class_label"]) is int and item["class_label"] == 1


@pytest.mark.parametrize("stored, channels", [(IMAGES, 1), (IMAGES[..., 0], 1), (IMAGES[..., 0], 3)])
def test_channels_are_converted(stored, channels):
    image = ArrayDataset(stored, LABELS, channels=channels)[0]["image"]
    assert image.shape == (10, 12, channels)
    assert np.ptp(image, axis=2).max() == 0  # all channels alike


def test_the_range_is_minus_one_to_one():
    images = np.stack([np.zeros((2, 2), np.uint8), np.full((2, 2), 255, np.uint8)])
    data = ArrayDataset(images, np.zeros(2))
    assert data[0]["image"].min() == -1.0 and data[1]["image"].max() == 1.0


def test_resize_keeps_the_aspect_and_pad_keeps_the_pixels():
    assert to_size(IMAGES[0], 5, "resize").shape == (5, 5, 3)
    padded = to_size(IMAGES[0, ..., 0], 16, "pad")
    assert padded.shape == (16, 16) and np.array_equal(padded[3:13, 2:14], IMAGES[0, ..., 0])
    assert int(padded.sum(dtype=int)) == int(IMAGES[0, ..., 0].sum(dtype=int))
    with pytest.raises(UserError, match="does not fit"):
        to_size(IMAGES[0], 8, "pad")


@pytest.mark.parametrize("shape", [(218, 178), (30, 47), (33, 32), (32, 41), (20, 21)])
@pytest.mark.parametrize("size", [32, 31])
def test_resizing_rounds_as_torchvision_does(shape, size):
    transforms = pytest.importorskip("torchvision.transforms")
    image = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    wanted = transforms.CenterCrop(size)(transforms.Resize(size)(Image.fromarray(image)))
    assert np.array_equal(to_size(image, size, "resize", "bilinear"), np.asarray(wanted))


def test_cropping_takes_the_centre_as_it_is():
    image = np.arange(96 * 96, dtype=np.uint16).astype(np.uint8).reshape(96, 96)
    assert np.array_equal(to_size(image, 32, "crop"), image[32:64, 32:64])
    with pytest.raises(UserError, match="size=97 cannot be cut"):
        to_size(image, 97, "crop")


def test_interpolations_differ_and_have_names():
    seen = {name: ArrayDataset(IMAGES, LABELS, 5, interpolation=name)[0]["image"].tobytes() for name in INTERPOLATIONS}
    assert seen["linear"] == seen["bilinear"] and len(set(seen.values())) == 4
    assert ArrayDataset(IMAGES, LABELS, 5)[0]["image"].tobytes() == seen["bicubic"]


def test_a_set_may_have_its_own_defaults():
    class Cropped(ArrayDataset):
        default_size, default_framing, default_interpolation = 6, "crop", "nearest"

    assert np.array_equal(Cropped(IMAGES, LABELS)[0]["image"], ArrayDataset(IMAGES, LABELS)[0]["image"][2:8, 3:9])
    assert Cropped(IMAGES, LABELS, 8)[0]["image"].shape == (8, 8, 3)
    assert Cropped(IMAGES, LABELS, config={"size": 4})[0]["image"].shape == (4, 4, 3)


def test_the_older_config_spelling_gives_the_same_set():
    config = OmegaConf.create({"size": 8})
    assert ArrayDataset(IMAGES, LABELS, config=config)[0]["image"].shape == (8, 8, 3)
    with pytest.raises(UserError, match="did you mean 'size'"):
        ArrayDataset(IMAGES, LABELS, config={"sizes": 8})
    with pytest.raises(UserError, match="disagree"):
        ArrayDataset(IMAGES, LABELS, size=4, config={"size": 8})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 0}, "size=0; give a whole number from 1"),
        ({"channels": 2}, "channels=2; give 1 .* or 3"),
        ({"flip_p": 1.5}, "flip_p=1.5 is not a probability"),
        ({"flip_p": -0.1}, "flip_p=-0.1 is not a probability"),
        ({"framing": "stretch"}, "framing='stretch'; one of "),
        ({"interpolation": "cubic"}, "interpolation='cubic'; did you mean 'bicubic'"),
    ],
)
def test_values_outside_the_range_are_refused(wrong, message):
    with pytest.raises(UserError, match=message):
        ArrayDataset(IMAGES, LABELS, **wrong)


def test_unknown_arguments_raise():
    with pytest.raises(TypeError):
        ArrayDataset(IMAGES, LABELS, sizee=3)


def test_flips_are_random_and_said_to_be():
    data = ArrayDataset(IMAGES, LABELS, flip_p=0.5)
    assert not data.deterministic and ArrayDataset(IMAGES, LABELS).deterministic
    torch.manual_seed(0)
    plain = ArrayDataset(IMAGES, LABELS)[0]["image"]
    seen = {bool(np.array_equal(data[0]["image"], plain)) for _ in range(30)}
    assert seen == {True, False}
    mirrored = ArrayDataset(IMAGES, LABELS, flip_p=1.0)[0]["image"]
    assert np.array_equal(mirrored, plain[:, ::-1])


def flips(data, index, reads=20) -> list[bool]:
    plain = ArrayDataset(IMAGES, LABELS)[index]["image"]
    return [bool(np.array_equal(data[index]["image"], plain)) for _ in range(reads)]


def test_a_records_flips_depend_on_no_other_record():
    torch.manual_seed(0)
    alone = flips(ArrayDataset(IMAGES, LABELS, flip_p=0.5), 2)
    torch.manual_seed(0)
    data = ArrayDataset(IMAGES, LABELS, flip_p=0.5)
    among = []
    for _ in range(20):
        _ = data[0], torch.rand(3)
        among += flips(data, 2, 1)
        _ = data[5]
    assert among == alone and len(set(alone)) == 2
    assert flips(data, 3) != alone
    torch.manual_seed(1)
    assert flips(ArrayDataset(IMAGES, LABELS, flip_p=0.5), 2) != alone


def test_indices_are_checked():
    data = ArrayDataset(IMAGES, LABELS)
    assert data[-1]["class_label"] == 2
    with pytest.raises(IndexError):
        data[6]


def test_the_fingerprint_tells_sets_apart():
    def mark(images=IMAGES, labels=LABELS, **options):
        return ArrayDataset(images, labels, **options).fingerprint()

    changed = IMAGES.copy()
    changed[3, 2, 1, 0] ^= 1
    assert mark() == mark(IMAGES.copy())
    others = [mark(changed), mark(labels=LABELS[::-1]), mark(size=8), mark(channels=1), mark(IMAGES[:5], LABELS[:5])]
    others += [mark(interpolation="nearest"), mark(framing="crop")]
    assert len({mark(), *others}) == 8


def test_a_split_is_stratified_disjoint_and_fixed():
    labels = np.repeat(np.arange(5), [50, 100, 150, 200, 500])
    kept, held = stratified_split(labels, 100)
    assert np.bincount(labels[held]).tolist() == [5, 10, 15, 20, 50]
    assert len(np.intersect1d(kept, held)) == 0 and len(kept) + len(held) == len(labels)
    again = stratified_split(labels, 100)
    assert np.array_equal(kept, again[0]) and np.array_equal(held, again[1])
    assert not np.array_equal(held, stratified_split(labels, 100, seed=1)[1])
    assert len(stratified_split(labels, 0)[1]) == 0
    with pytest.raises(UserError, match="1001 records cannot be held out of 1000"):
        stratified_split(labels, 1001)


def test_the_root_comes_from_the_argument_then_the_environment_then_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LDM_DATA_ROOT", raising=False)
    assert data_root() == cache_home() == tmp_path / "cache"
    monkeypatch.setenv("LDM_DATA_ROOT", str(tmp_path / "data"))
    assert data_root() == tmp_path / "data"
    assert data_root(tmp_path / "own") == tmp_path / "own"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_home() == Path(tmp_path) / ".cache"
