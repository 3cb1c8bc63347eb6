"""Text files that are no text, too large, or no files at all: one line, at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ldm.data import celeba
from ldm.data.camelyon import read_metadata
from ldm.data.celeba_attributes import AttributeTable
from ldm.errors import UserError
from ldm.evaluation.features.inception import InceptionFeatures
from ldm.files import read_text
from ldm.inference import read_prompts
from ldm.modules.encoders.wordpiece import _read_vocabulary
from ldm.modules.losses.lpips import _tensors_of
from ldm.modules.vqvae.quantize import VectorQuantizer2
from ldm.reports.release_facts import ReleaseFacts
from ldm.training.request import is_private_card


def remapped(path: Path) -> Any:
    return VectorQuantizer2(4, 2, 0.25, remap=str(path))


READERS: dict[str, Callable[[Path], Any]] = {
    "text": read_text,
    "captions": read_prompts,
    "vocabulary": _read_vocabulary,
    "attributes": AttributeTable.read,
    "patches": lambda path: read_metadata(path, "train"),
    "release": ReleaseFacts.read,
    "inception": lambda path: InceptionFeatures(weights=path),
    "perceptual": _tensors_of,
    "codes": remapped,
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", ["pipe", "endless", "folder", "bytes"])
def test_what_is_no_file_of_that_kind_is_one_line(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / "a"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"\xff\xfe\x00\x81" * 9)
    with pytest.raises(UserError) as caught:
        READERS[name](path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_card_that_cannot_be_read_counts_as_private(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "privacy.json")
    assert is_private_card(tmp_path / "privacy.json")


def test_a_text_has_a_bound(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("12345")
    assert read_text(tmp_path / "a.txt", 5) == "12345"
    with pytest.raises(UserError, match="larger than 4 bytes"):
        read_text(tmp_path / "a.txt", 4)


def test_lists_of_images_in_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "list_eval_partition.txt").write_bytes(b"000001.jpg 0\n\xff\xfe 1\n")
    with pytest.raises(UserError, match="list_eval_partition.txt' as text"):
        celeba.partition(tmp_path, None)
