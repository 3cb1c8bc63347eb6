"""Which files of a folder are records and which subfolders classes: one rule for every reader."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.data.folder import ImageFolder
from ldm.errors import UserError
from ldm.evaluation.inputs.image_source import open_images
from ldm.samples.image_folder import list_images


def write(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(root / name, format="PNG")


@pytest.mark.parametrize(
    "name",
    [
        ".ipynb_checkpoints/0-checkpoint.png",
        "@eaDir/0.png",
        "@Recycle/0.png",
        "found.000/0.png",
        "__MACOSX/0.png",
        ".thumbnails/0.png",
        "Thumbnails/0.png",
        "cat/.hidden.png",
        "cat/._0.png",
        "cat/.ipynb_checkpoints/0.png",
        "cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg",
        "cat/0_thumb.png",
        "cat/thumb_0.png",
        "cat/notes.txt",
    ],
)
def test_what_is_no_record_is_left_out_and_listed(tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, "cat/0.png", "dog/0.png", name)
    with caplog.at_level(logging.INFO):
        listing = list_images(tmp_path)
    assert listing.files == ["cat/0.png", "dog/0.png"] and listing.class_names == ["cat", "dog"]
    assert len(listing.skipped) == 1 and name.startswith(listing.skipped[0][0])
    assert "2 images in 2 classes; left out: 1 " in caplog.text and listing.skipped[0][0] in caplog.text


def test_a_name_like_a_thumbnails_alone_is_a_record(tmp_path: Path) -> None:
    write(tmp_path, "a_thumb.png", "thumb_b.png", "c.png")
    assert list_images(tmp_path).files == ["a_thumb.png", "c.png", "thumb_b.png"]


def test_links_and_second_names_are_no_records(tmp_path: Path) -> None:
    write(tmp_path, "cat/0.png", "dog/0.png")
    write(tmp_path / "elsewhere", "x.png")
    (tmp_path / "elsewhere").rename(tmp_path.parent / "elsewhere")
    (tmp_path / "cat" / "link.png").symlink_to(tmp_path / "dog" / "0.png")
    (tmp_path / "cat" / "outside.png").symlink_to(tmp_path.parent / "elsewhere" / "x.png")
    (tmp_path / "cat" / "loop").symlink_to(tmp_path / "cat")
    (tmp_path / "cat" / "itself.png").symlink_to(tmp_path / "cat" / "itself.png")
    (tmp_path / "bird").symlink_to(tmp_path / "dog")
    os.link(tmp_path / "dog" / "0.png", tmp_path / "dog" / "1.png")
    listing = list_images(tmp_path)
    assert listing.files == ["cat/0.png", "dog/0.png"] and listing.class_names == ["cat", "dog"]
    assert {reason for _, reason in listing.skipped} == {"link", "link to a folder", "second name of a file"}
    farm = tmp_path / "farm"
    farm.mkdir()
    (farm / "0.png").symlink_to(tmp_path / "cat" / "0.png")
    with pytest.raises(UserError, match="links are not followed.*cp -rL"):
        list_images(farm)


def test_training_and_evaluation_number_classes_alike(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An empty class keeps its number, deeper folders count, suffixes are compared without case."""
    write(tmp_path, "cat/0.png", "cat/deep/1.PNG", "dog/0.gif", "eel/0.JPEG", ".hidden/0.png")
    (tmp_path / "bird").mkdir()
    data, source = ImageFolder(tmp_path), open_images(str(tmp_path))
    images, labels = next(source.batches(9))
    assert data.labels.tolist() == labels.tolist() == [1, 1, 2, 3] and data.num_classes == 4
    assert list(data.class_names) == list(source.class_names) == ["bird", "cat", "dog", "eel"]
    assert np.array_equal(images.numpy(), np.stack([data[i]["image"].transpose(2, 0, 1) for i in range(4)]))
    assert "1 classes have no images and keep their numbers: bird" in caplog.text


def test_images_beside_and_in_subfolders_are_refused_by_both(tmp_path: Path) -> None:
    write(tmp_path, "0.png", "cat/0.png")
    for reader in (ImageFolder, lambda path: open_images(str(path))):
        with pytest.raises(UserError, match="both beside and in subfolders"):
            reader(tmp_path)


@pytest.mark.parametrize("order", [(8, 8, 12), (12, 8, 8), (8, 12, 8)])
def test_several_sizes_need_a_size_whatever_the_batch(tmp_path: Path, order: tuple[int, ...]) -> None:
    for number, side in enumerate(order):
        Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(tmp_path / f"{number}.png")
    for reader in (ImageFolder, lambda path: open_images(str(path))):
        with pytest.raises(UserError, match="2 different sizes: 8x8 .2., 12x12 .1."):
            reader(tmp_path)
    images, _ = next(open_images(str(tmp_path), ["size:6"]).batches(3))
    assert images.shape[2:] == (6, 6) == ImageFolder(tmp_path, size=6)[0]["image"].shape[:2]


def test_dicom_files_without_the_package_are_refused_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ldm.samples.image_folder.can_read", lambda: False)
    write(tmp_path, "0.png")
    (tmp_path / "1.dcm").write_bytes(b"DICM")
    with pytest.raises(UserError, match="1 DICOM files, such as 1.dcm.*pydicom"):
        list_images(tmp_path)
