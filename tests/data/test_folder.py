from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ldm.data.folder import ImageFolder
from ldm.errors import UserError
from ldm.samples.image_files import read_image
from tests.data.numbered_images import image, red, write_image


@pytest.fixture
def classes(tmp_path):
    """Two classes of two images, one of them a level deeper."""
    for number, name in enumerate(["cat/a.png", "cat/deep/b.JPG", "dog/a.png", "dog/b.png"]):
        write_image(tmp_path / name, number)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / ".hidden.png").write_text("no image")
    return tmp_path


def test_subfolders_are_classes_in_the_order_of_their_names(classes):
    data = ImageFolder(classes)
    assert data.class_names == ["cat", "dog"] and data.num_classes == 2
    assert [red(data[i]) for i in range(4)] == [0, 1, 2, 3]
    assert data.labels.tolist() == [0, 0, 1, 1] == [data[i]["class_label"] for i in range(4)]
    assert data[2]["image"].shape == (12, 10, 3) and data[2]["image"].dtype == np.float32
    assert np.allclose(data[2]["image"], image(2) / 127.5 - 1, atol=1e-6)


def test_a_flat_folder_has_no_classes(tmp_path):
    for number in range(3):
        write_image(tmp_path / f"{number}.png", number)
    data = ImageFolder(root=tmp_path, size=8)
    assert [red(data[i]) for i in range(3)] == [0, 1, 2] and data.labels is None and data.num_classes is None
    assert set(data[0]) == {"image"} and data[0]["image"].shape == (8, 8, 3)


def test_options_of_every_set(classes):
    assert ImageFolder(classes, config={"size": 6}, channels=1)[0]["image"].shape == (6, 6, 1)
    assert np.array_equal(ImageFolder(classes, flip_p=1.0)[1]["image"], ImageFolder(classes)[1]["image"][:, ::-1])


def test_the_fingerprint_follows_the_files(classes):
    before = ImageFolder(classes).fingerprint()
    assert before == ImageFolder(classes).fingerprint() != ImageFolder(classes, 8).fingerprint()
    write_image(classes / "dog" / "c.png", 9)
    assert ImageFolder(classes).fingerprint() != before


def test_grey_and_transparent_files(tmp_path):
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.full((4, 4, 4), 9, np.uint8)).save(tmp_path / "b.png")
    assert read_image(tmp_path / "a.png").shape == (4, 4)
    assert read_image(tmp_path / "b.png").shape == (4, 4, 3)
    assert ImageFolder(tmp_path)[0]["image"].shape == (4, 4, 3)


def test_mistakes_are_named(classes, tmp_path):
    with pytest.raises(UserError, match="no folder .*none; name the folder"):
        ImageFolder(tmp_path / "none")
    (tmp_path / "cat" / "empty").mkdir()
    with pytest.raises(UserError, match="no images in .*it looks for .bmp"):
        ImageFolder(classes / "cat" / "empty")
    write_image(classes / "stray.png", 5)
    with pytest.raises(UserError, match="both beside and in subfolders"):
        ImageFolder(classes)
    (classes / "dog" / "a.png").write_text("no image")
    (classes / "stray.png").unlink()
    with pytest.raises(UserError, match=r"a.png: cannot be read as an image .*remove it") as caught:
        ImageFolder(classes)
    assert "\n" not in str(caught.value)
    (classes / "cat" / "a.png").write_text("no image")
    with pytest.raises(UserError, match=r"2 files cannot be read: .*cat/a.png.*dog/a.png"):
        ImageFolder(classes)


def test_declared_class_names_decide_the_labels(tmp_path):
    for name in ("b", "a"):
        (tmp_path / name).mkdir()
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / name / "0.png")
    read = ImageFolder(tmp_path, class_names=["b", "none", "a"])
    assert read.labels.tolist() == [2, 0] and read.num_classes == 3 and read.class_names == ["b", "none", "a"]
    with pytest.raises(UserError, match="the subfolder 'b' is not in class_names"):
        ImageFolder(tmp_path, class_names=["a"])
    with pytest.raises(UserError, match="stands there twice"):
        ImageFolder(tmp_path, class_names=["a", "b", "a"])
    with pytest.raises(UserError, match="lie in no subfolders"):
        ImageFolder(tmp_path / "a", class_names=["a"])
