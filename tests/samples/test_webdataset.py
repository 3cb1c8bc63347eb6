"""webdataset shards: the images, labels and names of a sample file, in tar files that are always the same."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import UserError
from ldm.samples import SampleSet
from ldm.samples.webdataset import write_webdataset


def samples(labels: torch.Tensor | None) -> SampleSet:
    grey = torch.linspace(-1, 1, 5 * 3 * 4 * 4).reshape(5, 3, 4, 4)
    return SampleSet(grey, labels)


def test_shards_hold_images_labels_and_names(tmp_path: Path) -> None:
    given = samples(torch.tensor([0, 1, 1, 0, 1]))
    shards = write_webdataset(given, tmp_path / "out", ["cat", "dog"], shard=2)
    assert [path.name for path in shards] == [f"samples-00000{number}.tar" for number in range(3)]
    found: dict[str, bytes] = {}
    for path in shards:
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                assert member.mtime == 0 and member.uname == ""
                content = tar.extractfile(member)
                assert content is not None
                found[member.name] = content.read()
    assert len(found) == 15 and found["00000001.cls"] == b"1" and found["00000003.txt"] == b"cat"
    pixels = np.asarray(Image.open(io.BytesIO(found["00000004.png"])))
    expected = ((given.images[4] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert (pixels == expected).all()


def test_the_bytes_depend_on_the_samples_alone(tmp_path: Path) -> None:
    first = write_webdataset(samples(None), tmp_path / "a")
    second = write_webdataset(samples(None), tmp_path / "b")
    assert first[0].read_bytes() == second[0].read_bytes()
    with pytest.raises(UserError, match="exists"):
        write_webdataset(samples(None), tmp_path / "a")
    with pytest.raises(UserError, match="class 1, and 1 class names"):
        write_webdataset(samples(torch.tensor([0, 1, 0, 0, 0])), tmp_path / "c", ["cat"])
