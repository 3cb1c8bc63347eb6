from __future__ import annotations

import os
import pickle
import stat

import numpy as np
import pytest
import torch

from ldm.data.base import ArrayDataset
from ldm.data.latent_cache import LatentCache, why_not_cacheable
from ldm.data.module import EmptyAwareCollate, InBatches
from ldm.errors import UserError


class Encoder:
    """Moments (B, 4, 2, 2) that are a function of the image; counts the images it has seen."""

    def __init__(self):
        self.images = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        assert images.dtype == torch.float32 and images.shape[1:] == (3, 8, 8)
        self.images += len(images)
        pooled = torch.nn.functional.avg_pool2d(images, 4)
        return torch.cat([pooled, pooled[:, :1] ** 2], 1)


def test_every_batch_has_one_shape(tmp_path):
    """A kernel may round otherwise in a shorter batch, whose length would tell the number of records."""
    shapes = []

    def encode(images):
        shapes.append(tuple(images.shape))
        return Encoder()(images)

    cache = build(tmp_path, encoder=encode)
    assert set(shapes) == {(3, 3, 8, 8)} and len(cache.moments) == 7


class Captioned(ArrayDataset):
    """Adds a caption, a box and a weight to every item."""

    def annotations(self, index):
        box = np.array([index, 2], np.int32)
        return {**super().annotations(index), "caption": f"image {index}", "box": box, "weight": index / 2}


class Foreign(torch.utils.data.Dataset):
    """A set that knows nothing of annotations and hands out whole items."""

    deterministic = True

    def __init__(self, own: ArrayDataset):
        self.own, self.fingerprint = own, own.fingerprint

    def __len__(self):
        return len(self.own)

    def __getitem__(self, index):
        return self.own[index]


def dataset(kind: type = ArrayDataset, count: int = 7, seed: int = 0, **options) -> ArrayDataset:
    images = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return kind(images, np.arange(count) % 3, **options)


def build(root, encoder=None, data=None, key="autoencoder", **options) -> LatentCache:
    return LatentCache(
        dataset() if data is None else data, encoder or Encoder(), key, root, **{"batch_size": 3, **options}
    )


def test_items_are_the_encoders_moments(tmp_path):
    data = dataset()
    cache = build(tmp_path, data=data)
    assert len(cache) == 7
    for index in (0, 3, 6, -1):
        item = cache[index]
        image = torch.tensor(data[index]["image"]).permute(2, 0, 1)[None]
        assert torch.equal(item["moments"], Encoder()(image)[0]) and item["moments"].dtype == torch.float32
        assert type(item["class_label"]) is int and item["class_label"] == data[index]["class_label"]
        assert set(item) == {"moments", "class_label"}
    assert np.array_equal(cache.labels, data.labels)
    with pytest.raises(IndexError):
        cache[7]


def test_it_collates(tmp_path):
    batch = next(iter(torch.utils.data.DataLoader(build(tmp_path), batch_size=7)))
    assert batch["moments"].shape == (7, 4, 2, 2) and batch["class_label"].dtype == torch.int64


@pytest.mark.parametrize("indices", [[3, 0, -1, 3], [6], []])
def test_a_whole_batch_is_what_its_items_collate_to(tmp_path, indices):
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3), dtype=np.uint8)
    cache = build(tmp_path, data=Captioned(images, np.arange(7) % 3))
    found, collate = cache.batch(indices), EmptyAwareCollate(cache[0])
    expected = collate([cache[i] for i in indices])
    assert set(found) == set(expected)
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(found[name], value) and found[name].dtype == value.dtype, name
        else:
            assert list(found[name]) == list(value), name
    loader = torch.utils.data.DataLoader(InBatches(cache), batch_sampler=[indices], collate_fn=collate)
    (batch,) = loader
    assert torch.equal(batch["moments"], expected["moments"])


def test_a_record_that_is_not_there_is_refused_in_a_batch_too(tmp_path):
    with pytest.raises(IndexError, match="has 7 records"):
        build(tmp_path).batch([0, 7])


def test_the_next_run_encodes_nothing(tmp_path):
    first, second = Encoder(), Encoder()
    build(tmp_path, first)
    again = build(tmp_path, second)
    assert (first.images, second.images) == (9, 0)  # seven, and two copies that fill the last batch
    assert len(again) == 7 and [p.name for p in tmp_path.iterdir()] == [again.key]


@pytest.mark.parametrize(
    "change",
    [{"key": "other weights"}, {"data": dataset(seed=1)}, {"dtype": torch.float16}, {"data": dataset(count=6)}],
)
def test_anything_that_matters_changes_the_key(tmp_path, change):
    encoder = Encoder()
    assert build(tmp_path).key != build(tmp_path, encoder, **change).key
    assert encoder.images > 0


def test_half_precision_is_stored_and_single_is_given(tmp_path):
    full, half = build(tmp_path), build(tmp_path, dtype=torch.float16)
    assert half[2]["moments"].dtype == torch.float32
    assert torch.allclose(half[2]["moments"], full[2]["moments"], atol=2e-3)
    assert not torch.equal(half[2]["moments"], full[2]["moments"])
    with pytest.raises(UserError, match="float32 or float16"):
        build(tmp_path, dtype=torch.int64)


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_only_the_owner_may_read(tmp_path, mask):
    before = os.umask(mask)
    try:
        cache = build(tmp_path / "new" / "latents")
    finally:
        os.umask(before)
    assert stat.S_IMODE(cache.path.stat().st_mode) == 0o700
    files = list(cache.path.iterdir())
    assert len(files) == 3 and {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_a_damaged_cache_is_made_again(tmp_path, caplog):
    good = build(tmp_path)
    expected = good[4]["moments"]
    for name in sorted(path.name for path in good.path.iterdir()):
        for damage in ("flip", "cut", "gone"):
            path = good.path / name
            content = bytearray(path.read_bytes())
            if damage == "gone":
                path.unlink()
            else:
                content[len(content) // 2] ^= 0xFF
                path.write_bytes(content if damage == "flip" else content[:-4])
            encoder = Encoder()
            caplog.clear()
            assert torch.equal(build(tmp_path, encoder)[4]["moments"], expected), (name, damage)
            assert encoder.images == 9, (name, damage)
            assert "damaged" in caplog.text


def test_a_cache_that_another_process_has_finished_meanwhile_is_left_alone(tmp_path):
    class Slow(Encoder):
        def __call__(self, images):
            if self.images == 0:
                self.other = build(tmp_path)
                self.inode = self.other.path.stat().st_ino
            return super().__call__(images)

    slow = Slow()
    cache = build(tmp_path, slow)
    assert cache.path == slow.other.path and slow.images == 9
    assert cache.path.stat().st_ino == slow.inode
    assert torch.equal(cache[2]["moments"], slow.other[2]["moments"])
    assert [path.name for path in tmp_path.iterdir()] == [cache.key]


def test_an_interrupted_build_leaves_nothing(tmp_path):
    def broken(images):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, broken)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_encoder_is_noticed(tmp_path):
    with pytest.raises(ValueError, match="encode gave"):
        build(tmp_path, lambda images: images[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrap", [lambda data: data, Foreign])
def test_other_fields_are_stored_or_read_again(tmp_path, wrap):
    cache = build(tmp_path, data=wrap(dataset(Captioned)))
    item = cache[5]
    assert item["caption"] == "image 5" and item["weight"] == 2.5
    assert item["box"].tolist() == [5, 2] and item["box"].dtype == torch.int32
    batch = next(iter(torch.utils.data.DataLoader(cache, batch_size=2)))
    assert batch["caption"] == ["image 0", "image 1"] and batch["box"].shape == (2, 2)


def test_annotations_spare_the_images(tmp_path, monkeypatch):
    data = dataset(Captioned)
    cache = build(tmp_path, data=data)
    monkeypatch.setattr(data, "pixels", None)  # would be called to decode an image
    item = cache[5]
    assert item["caption"] == "image 5" and set(item) == {"moments", "class_label", "box", "weight", "caption"}


def test_augmented_images_are_refused(tmp_path):
    flipped = dataset(flip_p=0.5)
    assert "augmentation" in why_not_cacheable(flipped)
    with pytest.raises(UserError, match="latent_cache=false"):
        build(tmp_path, data=flipped)
    assert why_not_cacheable(torch.utils.data.TensorDataset(torch.zeros(3))) is not None
    assert why_not_cacheable(dataset()) is None
    with pytest.raises(UserError, match="no records"):
        build(tmp_path, data=dataset(count=0))


def test_dropping_deletes_the_moments(tmp_path):
    cache = build(tmp_path)
    cache.drop()
    assert not cache.path.exists()
    with pytest.raises(UserError, match="dropped"):
        cache[0]
    encoder = Encoder()
    build(tmp_path, encoder)
    assert encoder.images == 9


def test_a_worker_process_maps_the_files_itself(tmp_path):
    cache = build(tmp_path)
    _ = cache[0]
    copy = pickle.loads(pickle.dumps(cache))
    assert copy._arrays is None and torch.equal(copy[3]["moments"], cache[3]["moments"])


def test_the_default_place_is_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert build(None).path.parent == tmp_path / "ldm" / "latents"
