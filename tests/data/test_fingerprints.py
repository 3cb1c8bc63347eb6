"""Every fingerprint covers content: files of one name, size and time are told apart by their bytes."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.celeba_attributes import AttributedFiles
from ldm.data.folder import ImageFolder
from ldm.data.formats import parquet_rows
from ldm.data.glyphs import GlyphsTrain
from ldm.data.imagenet_small import ImageNet32Validation
from ldm.data.in_memory_dataset import InMemoryDataset
from ldm.data.latent_cache import LatentCache
from ldm.data.parquet import ParquetImages
from tests.data.numbered_images import image

WHEN = 1577836800


def bitmap(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(path)


def folder(root: Path, value: int) -> ImageFolder:
    bitmap(root / "a" / "0.bmp", value)
    return ImageFolder(root)


def in_memory(root: Path, value: int) -> InMemoryDataset:
    torch.save({"image": torch.full((2, 8, 8, 3), value, dtype=torch.uint8)}, root / "a.pt")
    return InMemoryDataset(root / "a.pt")


def captions(root: Path, value: int) -> AttributedFiles:
    bitmap(root / "0.bmp", 7)
    (root / "0.txt").write_text(f"a caption of {value:3d}")
    return AttributedFiles(root, ["0.bmp"], "caption", captions=[root / "0.txt"])


def small_imagenet(root: Path, value: int) -> ImageNet32Validation:
    np.savez(root / "val_data.npz", data=np.full((2, 3072), value, np.uint8), labels=np.array([1, 2]))
    return ImageNet32Validation(root=root)


def parquet(root: Path, value: int) -> ParquetImages:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    Image.fromarray(image(value)).save(buffer, format="BMP")
    pq.write_table(pa.table({"image": [buffer.getvalue()]}), root / "a.parquet", compression="none")
    assert parquet_rows.row_count(root / "a.parquet") == 1
    return ParquetImages(root)


@pytest.mark.parametrize("make", [folder, in_memory, captions, small_imagenet, parquet])
def test_equal_names_sizes_and_times_are_not_enough(tmp_path, make):
    found = []
    for name, value in (("public", 10), ("private", 240), ("copy", 10)):
        root = tmp_path / name
        root.mkdir()
        make(root, value)
        for path in root.rglob("*"):
            os.utime(path, (WHEN, WHEN))
        found.append(make(root, value).fingerprint() if make is parquet else _stamped(make, root, value))
    assert found[0] != found[1], "other content, same fingerprint"
    assert found[0] == found[2], "a copy is the same set"


def _stamped(make, root, value):
    data = make(root, value)
    for path in root.rglob("*"):
        os.utime(path, (WHEN, WHEN))
    return data.fingerprint()


def test_a_private_set_is_never_given_the_latents_of_a_public_one(tmp_path):
    caches = []
    for name, value in (("public", 10), ("private", 240)):
        data = folder(tmp_path / name, value)
        os.utime(tmp_path / name / "a" / "0.bmp", (WHEN, WHEN))
        caches.append(LatentCache(data, lambda x: torch.cat([x, x], 1), key="k", root=tmp_path / "cache"))
    assert float(caches[0][0]["moments"].mean()) != float(caches[1][0]["moments"].mean())


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"key": 1}', '{"key": "", "fields": [], "again": [], "files": {}}', "null", "{" + '"a": ' * 9],
)
def test_a_broken_index_of_the_latent_cache_is_made_again(tmp_path, text):
    data = folder(tmp_path / "set", 10)
    build = lambda: LatentCache(data, lambda x: torch.cat([x, x], 1), key="k", root=tmp_path / "cache")  # noqa: E731
    cache = build()
    wanted = cache[0]["moments"]
    (cache.path / "index.json").write_text(text)
    assert torch.equal(build()[0]["moments"], wanted)
    for path in cache.path.iterdir():
        path.unlink()
    cache.path.rmdir()
    cache.path.write_text("a file")
    assert torch.equal(build()[0]["moments"], wanted)


def test_rendered_images_that_changed_on_the_disk_are_rendered_again(tmp_path):
    first = GlyphsTrain(count=4, classes="01", cache=tmp_path)
    wanted = first.pixels(2).copy()
    (path,) = tmp_path.glob("glyphs-*.npy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 255
    path.write_bytes(content)
    assert np.array_equal(GlyphsTrain(count=4, classes="01", cache=tmp_path).pixels(2), wanted)
    assert path.read_bytes() != bytes(content)
