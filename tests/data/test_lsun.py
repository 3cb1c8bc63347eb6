from __future__ import annotations

import numpy as np
import pytest

from ldm.data.lsun import (
    LSUNBedroomsTrain,
    LSUNBedroomsValidation,
    LSUNCatsTrain,
    LSUNCatsValidation,
    LSUNChurchesTrain,
    LSUNChurchesValidation,
)
from ldm.errors import UserError
from tests.data.numbered_images import image as numbered_image
from tests.data.numbered_images import red, write_image

SETS = {
    "churches": (LSUNChurchesTrain, "church_outdoor_train.txt", LSUNChurchesValidation, "church_outdoor_val.txt"),
    "bedrooms": (LSUNBedroomsTrain, "bedrooms_train.txt", LSUNBedroomsValidation, "bedrooms_val.txt"),
    "cats": (LSUNCatsTrain, "cat_train.txt", LSUNCatsValidation, "cat_val.txt"),
}


def write(home, name: str) -> None:
    for number in range(5):
        write_image(home / name / "a" / f"{number}.webp", number)
    _, train, _, val = SETS[name]
    (home / train).write_text("a/3.webp\na/0.webp\n\n")
    (home / val).write_text("a/2.webp\n")


@pytest.mark.parametrize("name", SETS)
def test_lists_name_the_images(tmp_path, name, monkeypatch):
    write(tmp_path / "lsun", name)
    monkeypatch.setenv("LDM_DATA_ROOT", str(tmp_path))
    train, _, val, _ = SETS[name]
    data = train(flip_p=0.0)
    assert [red(data[i]) for i in range(len(data))] == [3, 0] and red(val()[0]) == 2
    assert set(data[0]) == {"image", "relative_file_path_", "file_path_"} and data.labels is None
    assert data[0]["relative_file_path_"] == "a/3.webp"
    assert data[0]["file_path_"] == str(tmp_path / "lsun" / name / "a" / "3.webp")


def test_the_middle_square_is_cut_out_before_resizing(tmp_path):
    write(tmp_path, "cats")
    options = {"data_root": tmp_path / "cats", "flip_p": 0.0}
    image = LSUNCatsTrain(**options)[0]["image"]
    assert np.array_equal(np.rint((image + 1) * 127.5), numbered_image(3)[1:11])
    for interpolation in ("linear", "bilinear", "bicubic", "lanczos"):
        assert LSUNCatsTrain(size=6, interpolation=interpolation, **options)[0]["image"].shape == (6, 6, 3)
    assert LSUNCatsTrain(config={"size": 4}, **options)[0]["image"].shape == (4, 4, 3)


def test_training_sets_are_mirrored_and_validation_sets_are_not(tmp_path):
    write(tmp_path, "churches")
    root = tmp_path / "churches"
    assert LSUNChurchesTrain(data_root=root).flip_p == 0.5 and LSUNChurchesValidation(data_root=root).deterministic
    with pytest.raises(UserError, match="evaluation"):
        LSUNChurchesValidation(data_root=root, flip_p=0.5)


def test_missing_data_say_where_and_how(tmp_path):
    write(tmp_path, "churches")
    root = tmp_path / "churches"
    for options, line in (
        ({"data_root": tmp_path / "none"}, "no list of images"),
        ({"data_root": root, "txt_file": tmp_path / "none.txt"}, "none.txt; extract"),
        ({"data_root": root, "txt_file": tmp_path / "lost.txt"}, "no image lost.webp, the first of lost.txt"),
        ({"data_root": root, "txt_file": tmp_path / "empty.txt"}, "is empty"),
    ):
        (tmp_path / "lost.txt").write_text("lost.webp\n")
        (tmp_path / "empty.txt").write_text("\n")
        with pytest.raises(UserError, match=line) as caught:
            if "txt_file" not in options:
                (tmp_path / "church_outdoor_train.txt").unlink()
            LSUNChurchesTrain(**options)
        text = str(caught.value)
        assert ("LDM_DATA_ROOT" in text and "\n" not in text and str(tmp_path) in text) or "lsun" in text
    with pytest.raises(UserError, match="interpolation='bicubix'; did you mean"):
        LSUNChurchesValidation(data_root=root, interpolation="bicubix")
