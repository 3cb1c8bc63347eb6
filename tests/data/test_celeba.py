from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.celeba import CelebATest, CelebATrain, CelebAValidation
from ldm.data.celeba_attributes import AttributeTable
from ldm.data.latent_cache import why_not_cacheable
from ldm.errors import UserError
from tests.data.faces import image, write_celeba


def numbers(data) -> list[int]:
    return [int(data.pixels(i)[0, 0, 0]) for i in range(len(data))]


@pytest.mark.parametrize("place", ["", "celeba", "CelebA/celeba"])
def test_the_parts_are_those_of_the_list(tmp_path, place):
    write_celeba(tmp_path / place, "0120012")
    assert numbers(CelebATrain(root=tmp_path)) == [1, 4, 5]
    assert numbers(CelebAValidation(root=tmp_path)) == [2, 6]
    assert numbers(CelebAValidation(root=tmp_path, split="valid")) == [2, 6]
    assert numbers(CelebATest(root=tmp_path)) == [3, 7]
    assert numbers(CelebATrain(root=tmp_path, split="all")) == list(range(1, 8))


def test_items_are_images_alone_unless_asked(tmp_path):
    write_celeba(tmp_path)
    data = CelebATrain(size=32, root=tmp_path)
    assert set(data[0]) == {"image"} and data.labels is None and data.num_classes is None
    assert data[0]["image"].shape == (32, 32, 3) and data[0]["image"].dtype == np.float32
    assert CelebATrain(root=tmp_path)[0]["image"].shape == (218, 178, 3)
    assert why_not_cacheable(data) is None and data.source == "CelebA" and data.rows.tolist() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("size", [32, 64])
def test_pixels_are_torchvisions_resize_and_centre_crop(tmp_path, size):
    transforms = pytest.importorskip("torchvision.transforms")
    write_celeba(tmp_path)
    reference = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), transforms.ToTensor()])
    wanted = reference(Image.fromarray(image(3, 218, 178))) * 2 - 1
    got = torch.from_numpy(CelebATrain(config={"size": size}, root=tmp_path)[2]["image"]).permute(2, 0, 1)
    assert torch.allclose(got, wanted, atol=1e-6)


def test_classes_are_made_of_attributes(tmp_path):
    write_celeba(tmp_path)
    male = CelebATrain(root=tmp_path, target_type="class", class_attrs=["Male"])
    assert male.num_classes == 2 and [male[i]["class_label"] for i in range(5)] == [n >> 1 & 1 for n in range(1, 6)]
    both = CelebATrain(root=tmp_path, target_type="class", class_attrs=["Smiling", "Bald"])
    assert both.num_classes == 4 and both.labels.tolist() == [(n >> 2 & 1) + 2 * (n & 1) for n in range(1, 6)]
    assert type(both[0]["class_label"]) is int
    attr = CelebAValidation(root=tmp_path, target_type="attr")
    assert attr.attribute_names == ["Bald", "Male", "Smiling"] and attr[0]["attr"].tolist() == [0, 1, 1]
    assert len({data.fingerprint() for data in (male, both, attr, CelebATrain(root=tmp_path))}) == 4


def test_lists_and_folders_as_kaggle_packs_them(tmp_path):
    write_celeba(tmp_path, "001")
    inner = tmp_path / "img_align_celeba" / "img_align_celeba"
    inner.mkdir()
    for path in (tmp_path / "img_align_celeba").glob("*.png"):
        path.rename(inner / path.name)
    for name, header in (("list_eval_partition", "image_id,partition"), ("list_attr_celeba", None)):
        lines = (tmp_path / f"{name}.txt").read_text().splitlines()
        rows = [",".join(line.split()) for line in lines]
        rows = [header, *rows] if header else ["image_id," + rows[1], *rows[2:]]
        (tmp_path / f"{name}.csv").write_text("\n".join(rows))
        (tmp_path / f"{name}.txt").unlink()
    data = CelebATrain(root=tmp_path, target_type="class", class_attrs=["Male"])
    assert numbers(data) == [1, 2] and data.labels.tolist() == [0, 1]


def test_flips_are_for_training_alone(tmp_path):
    write_celeba(tmp_path)
    flipped, plain = CelebATrain(32, 1.0, root=tmp_path), CelebATrain(32, root=tmp_path)
    assert np.array_equal(flipped[1]["image"], plain[1]["image"][:, ::-1]) and not flipped.deterministic
    with pytest.raises(UserError, match="evaluation"):
        CelebAValidation(32, 0.5, root=tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split": "tran"}, "did you mean 'train'"),
        ({"target_type": "clas", "class_attrs": ["Male"]}, "did you mean 'class'"),
        ({"target_type": "class"}, "class_attrs=.Male."),
        ({"class_attrs": ["Male"]}, "target_type='class' only"),
        ({"target_type": "class", "class_attrs": ["male "]}, "did you mean 'Male'"),
        ({"target_type": "class", "class_attrs": "Male"}, "give .Male."),
        ({"target_type": "caption"}, "no captions"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, message):
    write_celeba(tmp_path)
    with pytest.raises(UserError, match=message):
        CelebATrain(root=tmp_path, **options)


def test_missing_files_say_where_and_how(tmp_path):
    with pytest.raises(UserError, match="list_eval_partition.txt") as caught:
        CelebATrain(root=tmp_path)
    assert str(tmp_path) in str(caught.value) and "download=true" in str(caught.value)
    write_celeba(tmp_path)
    (tmp_path / "list_attr_celeba.txt").unlink()
    assert len(CelebATrain(root=tmp_path)) == 5
    with pytest.raises(UserError, match="no list_attr_celeba.txt"):
        CelebATrain(root=tmp_path, target_type="attr")
    (tmp_path / "img_align_celeba").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="img_align_celeba.zip"):
        CelebATrain(root=tmp_path)


def test_downloading_is_torchvisions(tmp_path, monkeypatch):
    def fetched(root, target_type, download):
        write_celeba(tmp_path / "CelebA" / "celeba")
        assert root == str(tmp_path / "CelebA") and download

    monkeypatch.setattr("torchvision.datasets.CelebA", fetched)
    assert len(CelebATrain(root=tmp_path, download=True)) == 5

    def refused(*_, **__):
        raise Exception("Too many users\nmore")

    monkeypatch.setattr("torchvision.datasets.CelebA", refused)
    with pytest.raises(UserError, match="Too many users"):
        CelebATrain(root=tmp_path / "other", download=True)


@pytest.mark.parametrize(
    "text, message",
    [("1\nA B\na.jpg 1 2\n", "'2' of a.jpg"), ("1\nA B\na.jpg 1\n", "1 values for 2"), ("1\nA\nb.jpg 1\n", "a.jpg")],
)
def test_broken_attribute_lists_are_named(tmp_path, text, message):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        AttributeTable.read(tmp_path / "list.txt").of(["a.jpg"])
