"""Files that are of another kind or too large are one line, at once; new folders are written whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from ldm.data import celeba
from ldm.data.camelyon import read_metadata
from ldm.data.celeba_attributes import AttributeTable
from ldm.errors import UserError
from ldm.evaluation.features.inception import InceptionFeatures
from ldm.files import check_new_folder, new_folder, read_json, read_text, write_atomic, write_json
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


def test_a_new_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    out = tmp_path / "above" / "new"
    with pytest.raises(ZeroDivisionError), new_folder(out) as folder:
        (folder / "a.txt").write_text("half")
        raise ZeroDivisionError
    assert [path for path in tmp_path.rglob("*") if path != out.parent] == []
    with new_folder(out) as folder:
        assert not out.exists() and folder.parent == out.parent  # a rename within one file system
        (folder / "a.txt").write_text("whole")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.txt")] == ["above/new/a.txt"]
    with pytest.raises(UserError, match="new exists; name a new folder, because"):
        check_new_folder(out, ", because")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written to"):
        check_new_folder(tmp_path / "file" / "new")


def test_json_files_hold_what_json_can(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"ε": [1.5, None]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "ε": [\n    1.5,\n    null\n  ]\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert read_json(tmp_path / "a.json", 100) == {"ε": [1.5, None]}


@pytest.mark.parametrize(
    ("text", "line"),
    [('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is given twice"), ("[1e309]", "too large a number"), ("[NaN]", "NaN")],
)
def test_json_that_programs_read_differently_is_refused(tmp_path: Path, text: str, line: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=line):
        read_json(tmp_path / "a.json", 100)


@pytest.mark.parametrize("taken", ["full", "empty", "link"])
def test_a_folder_that_another_command_wrote_meanwhile_is_left_as_it_is(tmp_path: Path, taken: str) -> None:
    out = tmp_path / "new"
    with pytest.raises(UserError, match="another command has written it"), new_folder(out) as folder:
        (folder / "a.txt").write_text("ours")
        if taken == "link":
            out.symlink_to(tmp_path / "nowhere")
        else:
            out.mkdir()
        if taken == "full":
            (out / "b.txt").write_text("theirs")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]  # no hidden folder stays
    assert not (out / "a.txt").exists()
    with pytest.raises(UserError, match="exists; name a new folder"):
        check_new_folder(out)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("basic_ios::clear: iostream error"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_names_the_file_and_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(OSError, match="No space left on device") as refused:
        write_atomic(tmp_path / "a.pt", write)
    assert refused.value.errno == errno.ENOSPC and refused.value.filename == str(tmp_path / "a.pt")
    assert list(tmp_path.iterdir()) == []
