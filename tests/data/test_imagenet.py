from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from torch.utils.data import default_collate

from ldm.data.imagenet import ImageNetSRTrain, ImageNetSRValidation, ImageNetTrain, ImageNetValidation
from ldm.errors import UserError
from tests.data.numbered_images import image as numbered_image
from tests.data.numbered_images import red, write_image

SYNSETS = ["n01440764", "n01443537", "n01484850", "n02123045"]


@pytest.fixture
def imagenet(tmp_path):
    """Four synsets of two images in the usual layout, with their names beside."""
    for part in ("train", "val"):
        for number in range(8):
            path = tmp_path / "ImageNet" / part / SYNSETS[number // 2] / f"{SYNSETS[number // 2]}_{number}.JPEG"
            write_image(path, number + (100 if part == "val" else 0), 24, 20)
    names = ["tench, Tinca tinca", "goldfish", "great white shark", "tabby"]
    lines = [f"{synset} {name}\n" for synset, name in zip(SYNSETS, names, strict=True)]
    (tmp_path / "ImageNet" / "synset_human.txt").write_text("".join(lines))
    return tmp_path


def numbers(data) -> list[int]:
    return [red(data[i]) for i in range(len(data))]


def test_items_as_the_lineage_has_them(imagenet):
    data = ImageNetTrain(data_root=imagenet)
    item = data[3]
    assert item["image"].shape == (24, 20, 3) and item["class_label"] == 1 and type(item["class_label"]) is int
    assert item["relpath"] == "n01443537/n01443537_3.JPEG" and item["synsets"] == "n01443537"
    assert item["human_label"] == "goldfish"
    assert item["file_path_"] == str(imagenet / "ImageNet/train" / item["relpath"])
    assert numbers(data) == list(range(8)) and data.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert numbers(ImageNetValidation(data_root=imagenet)) == list(range(100, 108))
    batch = default_collate([data[0], data[2]])
    assert batch["class_label"].dtype == torch.int64 and batch["synsets"] == SYNSETS[:2]


@pytest.mark.parametrize("place", ["train", "ILSVRC2012_train/data", "autoencoders/data/ILSVRC2012_train/data", ""])
def test_the_usual_layouts_are_found(tmp_path, place, monkeypatch):
    write_image(tmp_path / place / SYNSETS[0] / "a.JPEG", 5)
    assert numbers(ImageNetTrain(data_root=tmp_path)) == [5]
    if place:
        monkeypatch.setenv("LDM_DATA_ROOT", str(tmp_path))
        assert numbers(ImageNetTrain(config={"size": 8})) == [5]


def test_size_in_both_spellings(imagenet):
    config = OmegaConf.create({"size": 8})
    for data in (ImageNetTrain(size=8, data_root=imagenet), ImageNetTrain(config=config, data_root=imagenet)):
        assert data[0]["image"].shape == (8, 8, 3)


@pytest.mark.parametrize("wanted", ["1-3", "1, 2", [2, 1], OmegaConf.create([1, 2])])
def test_a_part_of_the_classes(imagenet, wanted):
    data = ImageNetTrain(config={"size": 8, "sub_indices": wanted}, data_root=imagenet)
    assert data.labels.tolist() == [0, 0, 1, 1] and data.num_classes == 2 and data[0]["synsets"] == SYNSETS[1]
    kept = ImageNetTrain(sub_indices=wanted, keep_orig_class_label=True, data_root=imagenet)
    assert kept.labels.tolist() == [1, 1, 2, 2] and kept.num_classes == 4


def test_missing_folders_keep_their_numbers_when_asked(imagenet):
    for path in (imagenet / "ImageNet" / "train" / SYNSETS[0]).iterdir():
        path.unlink()
    (imagenet / "ImageNet" / "train" / SYNSETS[0]).rmdir()
    assert ImageNetTrain(data_root=imagenet).labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert ImageNetTrain(keep_orig_class_label=True, data_root=imagenet).labels.tolist() == [1, 1, 2, 2, 3, 3]
    (imagenet / "ImageNet" / "synset_human.txt").unlink()
    assert ImageNetTrain(data_root=imagenet)[0]["human_label"] == SYNSETS[1]


def test_images_are_read_once_an_item_and_not_without_processing(imagenet, monkeypatch):
    opened = []
    inner = Image.open
    monkeypatch.setattr(Image, "open", lambda path: opened.append(path) or inner(path))
    ImageNetTrain(size=8, data_root=imagenet)[2]
    assert len(opened) == 1
    item = ImageNetTrain(size=8, process_images=False, data_root=imagenet)[2]
    assert len(opened) == 1 and "image" not in item and item["class_label"] == 1


def test_random_crops(imagenet):
    data = ImageNetTrain(size=20, random_crop=True, data_root=imagenet)
    assert not data.deterministic and ImageNetTrain(data_root=imagenet).deterministic
    torch.manual_seed(0)
    tops = {int(np.rint((float(data[0]["image"][0, 0, 1]) + 1) * 127.5)) for _ in range(30)}
    assert len(tops) > 2 and tops <= {0, 10, 20, 30, 40}
    assert data[0]["image"].shape == (20, 20, 3)


@pytest.mark.parametrize(
    ("kind", "options", "line"),
    [
        (ImageNetTrain, {"config": {"sise": 8}}, "config has no key 'sise'; did you mean 'size'"),
        (ImageNetTrain, {"size": 8, "config": {"size": 9}}, "size=8 and config.size=9 disagree"),
        (ImageNetTrain, {"sub_indices": "1-"}, "is no list of classes"),
        (ImageNetTrain, {"sub_indices": "3-3"}, "names no class"),
        (ImageNetTrain, {"sub_indices": [4]}, "class 4; there are 4 classes, 0 to 3"),
        (ImageNetTrain, {"random_crop": True}, "needs a size"),
        (ImageNetValidation, {"size": 8, "random_crop": True}, "evaluation set"),
        (ImageNetValidation, {"flip_p": 0.5}, "evaluation set"),
        (ImageNetSRTrain, {"degradation": "pil_nearest"}, "size=None is no multiple of downscale_f=4"),
        (ImageNetSRTrain, {"size": 10, "degradation": "pil_nearest"}, "size=10 is no multiple"),
        (ImageNetSRTrain, {"size": 8, "degradation": "bsrgan_light"}, "not offered; use pil_bicubic"),
        (ImageNetSRTrain, {"size": 8, "degradation": "pil_bicubix"}, "did you mean 'pil_bicubic'"),
        (ImageNetSRTrain, {"size": 8, "degradation": "pil_box", "max_crop_f": 1.5}, "crops from 0.5 to 1.5"),
        (ImageNetSRValidation, {"size": 8, "degradation": "pil_box", "random_crop": True}, "evaluation set"),
    ],
)
def test_mistakes_are_named(imagenet, kind, options, line):
    with pytest.raises(UserError) as caught:
        kind(data_root=imagenet, **options)
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [ImageNetTrain, ImageNetValidation, ImageNetSRTrain, ImageNetSRValidation])
def test_missing_data_say_where_and_how(tmp_path, kind):
    options = {"size": 8, "degradation": "pil_box"} if kind in (ImageNetSRTrain, ImageNetSRValidation) else {}
    with pytest.raises(UserError, match="no synset folders .*image-net.org.*LDM_DATA_ROOT") as caught:
        kind(data_root=tmp_path, **options)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


# super-resolution


@pytest.mark.parametrize("degradation", ["pil_nearest", "pil_bilinear", "pil_bicubic", "pil_box", "pil_lanczos"])
def test_low_resolution_is_made_from_the_square(imagenet, degradation):
    data = ImageNetSRValidation(size=8, degradation=degradation, data_root=imagenet)
    item = data[1]
    assert item["image"].shape == (8, 8, 3) and item["LR_image"].shape == (2, 2, 3) and item["class_label"] == 0
    shown = np.rint((item["image"] + 1) * 127.5).astype(np.uint8)
    filter = Image.Resampling[degradation.removeprefix("pil_").upper()]
    wanted = np.asarray(Image.fromarray(shown).resize((2, 2), filter)) / 127.5 - 1
    assert np.allclose(item["LR_image"], wanted, atol=1e-6)
    assert np.array_equal(item["image"], data[1]["image"]) and data.deterministic


def test_the_square_of_an_evaluation_set_is_the_middle(imagenet):
    image = ImageNetSRValidation(size=20, degradation="pil_box", data_root=imagenet)[0]["image"]
    assert np.array_equal(np.rint((image + 1) * 127.5), numbered_image(100, 24, 20)[2:22])


def test_squares_of_a_training_set_are_random(imagenet):
    data = ImageNetSRTrain(size=8, degradation="pil_nearest", downscale_f=2, data_root=imagenet)
    assert data[0]["LR_image"].shape == (4, 4, 3) and not data.deterministic
    assert len({data[0]["image"].tobytes() for _ in range(8)}) > 4


def test_index_files(imagenet, tmp_path):
    options = {"size": 8, "degradation": "pil_box", "data_root": imagenet}
    (tmp_path / "some.p").write_bytes(pickle.dumps([6, 1]))
    data = ImageNetSRValidation(index_file=tmp_path / "some.p", **options)
    assert [red(data[i]) for i in range(len(data))] == [106, 101] and data.labels.tolist() == [3, 0]
    assert data.fingerprint() != ImageNetSRValidation(**options).fingerprint()
    for content, line in (
        (pickle.dumps([8]), "another set"),
        (pickle.dumps(3), "no list of positions"),
        (b"text", "not a pickle"),
        (None, "no such index"),
    ):
        (tmp_path / "wrong.p").write_bytes(content) if content else (tmp_path / "wrong.p").unlink()
        with pytest.raises(UserError, match=line):
            ImageNetSRValidation(index_file=tmp_path / "wrong.p", **options)
