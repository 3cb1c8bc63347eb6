from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.data.celebahq import CelebAHQ
from ldm.data.latent_cache import LatentCache
from ldm.errors import UserError
from tests.data.faces import attributes_of, write_attributes, write_celebahq

TRAIN, TEST = [7, 2, 9, 0, 4, 3], [8, 1, 6, 5]
ORIGINAL = [12, 3, 5, 14, 9, 1, 10, 7, 6, 2]  # number in CelebA, from 0, of each image


def write_lists(root, third=lambda number: f"{ORIGINAL[number] + 1:06d}.jpg", header="idx orig_idx orig_file md5"):
    """CelebA's attributes by CelebA's names, and the list that says which image is which."""
    lines = [f"{n} {ORIGINAL[n]} {third(n)} 0" for n in range(10)]
    (root / "image_list.txt").write_text("\n".join([header, *lines]) + "\n")
    numbers = range(16)
    write_attributes(
        root / "list_attr_celeba.txt", [f"{n + 1:06d}.jpg" for n in numbers], [attributes_of(n) for n in numbers]
    )


@pytest.fixture
def root(tmp_path):
    write_celebahq(tmp_path, 10, TRAIN, TEST)
    write_lists(tmp_path)
    return tmp_path


def number(item) -> int:
    return round((float(item["image"][0, 0, 0]) + 1) * 127.5)


@pytest.mark.parametrize("split, numbers", [("train", TRAIN), ("test", TEST), ("all", list(range(10)))])
def test_a_image_comes_with_its_own_attributes_class_and_caption(root, split, numbers):
    attr = CelebAHQ(root=root, split=split, size=8, target_type="attr")
    classes = CelebAHQ(root=root, split=split, size=8, target_type="class", class_attrs=["Male", "Bald"])
    captions = CelebAHQ(root=root, split=split, size=8, target_type="caption")
    assert len(attr) == len(classes) == len(captions) == len(numbers)
    for i, n in enumerate(numbers):
        bald, male, smiling = attributes_of(ORIGINAL[n])
        assert number(attr[i]) == number(classes[i]) == number(captions[i]) == n
        assert attr[i]["attr"].tolist() == [bald, male, smiling] and attr[i]["attr"].dtype == np.int64
        assert classes[i]["class_label"] == male + 2 * bald == classes.labels[i]
        assert captions[i]["caption"] == f"face {n}"
    assert classes.num_classes == 4 and attr.rows.tolist() == numbers


@pytest.mark.parametrize("write", [str, "{}.jpg".format, "img{:08d}.png".format, int])
def test_split_lists_of_numbers_and_of_names(tmp_path, write):
    write_celebahq(tmp_path, 10, [write(n) for n in TRAIN], [])
    data = CelebAHQ(root=tmp_path, size=8)
    assert [number(data[i]) for i in range(6)] == TRAIN and set(data[0]) == {"image"} and data.labels is None


def test_the_third_column_may_be_a_number(root):
    write_lists(root, third=lambda n: ORIGINAL[n])
    data = CelebAHQ(root=root, size=8, target_type="class", class_attrs=["Smiling"])
    assert data.labels.tolist() == [attributes_of(ORIGINAL[n])[2] for n in TRAIN]


def test_a_list_of_the_images_themselves_needs_no_map(root):
    write_attributes(
        root / "list_attr_celeba.txt", [f"img{n:08d}.png" for n in range(10)], map(attributes_of, range(10))
    )
    (root / "image_list.txt").unlink()
    data = CelebAHQ(root=root, size=8, target_type="class", class_attrs=["Male"])
    assert data.labels.tolist() == [n >> 1 & 1 for n in TRAIN]


def test_labels_of_other_images_are_refused(root):
    write_lists(root, third=lambda n: n, header="idx celebA_idx split")
    with pytest.raises(UserError, match="does not say which of them"):
        CelebAHQ(root=root, target_type="class", class_attrs=["Male"])
    with pytest.raises(UserError, match="numbered as they were uploaded"):
        CelebAHQ(root=root, target_type="caption")
    (root / "image_list.txt").unlink()
    with pytest.raises(UserError, match="does not say which of them"):
        CelebAHQ(root=root, target_type="attr")
    assert CelebAHQ(root=root, target_type="caption", size=8)[0]["caption"] == "face 7"


@pytest.mark.parametrize("place", ["CelebAHQ", "celebahq"])
def test_where_it_is_looked_for(tmp_path, monkeypatch, place):
    write_celebahq(tmp_path / place, 2, [0, 1], [])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("LDM_DATA_ROOT", raising=False)
    assert len(CelebAHQ()) == len(CelebAHQ(datadir=tmp_path / place)) == len(CelebAHQ(datadir=place)) == 2
    monkeypatch.setenv("LDM_DATA_ROOT", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="extract_celeba_hq.py --root .*nowhere/CelebAHQ"):
        CelebAHQ()
    with pytest.raises(UserError, match="disagree"):
        CelebAHQ(datadir="a", root="b")


def test_size_by_either_name_and_its_default(root):
    assert CelebAHQ(root=root)[0]["image"].shape == (256, 256, 3)
    assert CelebAHQ(root=root, config={"size": 4})[0]["image"].shape == (4, 4, 3)
    assert number(CelebAHQ(root=root, size=4)[2]) == 9


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split": "valid"}, "one of train, test, all"),
        ({"target_type": "captions"}, "did you mean 'caption'"),
        ({"target_type": "class"}, "class_attrs=.Male."),
        ({"target_type": "class", "class_attrs": ["male"]}, "did you mean 'Male'"),
        ({"split": "test", "flip_p": 0.5}, "flip_p"),
    ],
)
def test_wrong_options_are_named(root, options, message):
    with pytest.raises(UserError, match=message):
        CelebAHQ(root=root, **options)


def test_missing_parts_are_named(root):
    (root / "images" / "img00000009.png").unlink()
    with pytest.raises(UserError, match="1 images of train_filenames.pickle .* img00000009.png"):
        CelebAHQ(root=root)
    assert len(CelebAHQ(root=root, split="test")) == 4 and len(CelebAHQ(root=root, split="all")) == 9
    (root / "celeba-caption" / "8.txt").unlink()
    with pytest.raises(UserError, match="such as 8.txt"):
        CelebAHQ(root=root, split="test", target_type="caption")
    (root / "test_filenames.pickle").write_bytes(pickle.dumps([1, 1]))
    with pytest.raises(UserError, match="twice"):
        CelebAHQ(root=root, split="test")
    (root / "test_filenames.pickle").write_bytes(pickle.dumps(["one"]))
    with pytest.raises(UserError, match="'one'"):
        CelebAHQ(root=root, split="test")
    (root / "test_filenames.pickle").unlink()
    with pytest.raises(UserError, match="no test_filenames.pickle"):
        CelebAHQ(root=root, split="test")
    (root / "list_attr_celeba.txt").unlink()
    with pytest.raises(UserError, match="no list_attr_celeba.txt"):
        CelebAHQ(root=root, split="all", target_type="attr")


def test_captions_survive_the_latent_cache(root, tmp_path, monkeypatch):
    data = CelebAHQ(root=root, size=8, target_type="caption")
    cache = LatentCache(
        data, lambda images: torch.nn.functional.avg_pool2d(images, 4)[:, :2], "k", tmp_path / "latents"
    )
    monkeypatch.setattr(Image, "open", None)  # no image is decoded for its caption
    assert [cache[i]["caption"] for i in range(6)] == [f"face {n}" for n in TRAIN]


def test_the_fingerprint_follows_what_items_are(root):
    def mark(**options):
        return CelebAHQ(root=root, size=8, **options).fingerprint()

    marks = [mark(), mark(split="test"), mark(target_type="attr"), mark(target_type="caption")]
    marks += [mark(target_type="class", class_attrs=["Male"]), mark(target_type="class", class_attrs=["Bald"])]
    assert len(set(marks)) == 6 and mark() == marks[0]
