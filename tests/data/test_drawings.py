from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ldm.data.drawings import DrawingsTrain, DrawingsVal, classes_of
from ldm.data.rendering.drawing_files import SIDE, Shelf, draw_svg, load_shelf, normalised, shelf_names
from ldm.errors import UserError

WORDS = [["shirt"], ["boot$"]]


def emoji(folder: Path, count: int = 60) -> Path:
    """Write an emoji set whose even drawings are bright shirts and whose odd ones are dark boots."""
    base = folder / "drawings" / "emoji"
    (base / "64").mkdir(parents=True)
    entries = []
    for number in range(count):
        image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
        value = 230 if number % 2 == 0 else 40
        ImageDraw.Draw(image).rectangle((5, 5, 30, 14 + number % 20), fill=(value, value, value, 255))
        image.save(base / "64" / f"{number}.png")
        name = f"t-shirt-{number}" if number % 2 == 0 else f"{number}-boot"
        entries.append({"image": f"{number}.png", "subcategory": "clothing", "short_name": name})
    entries.append({"image": "missing.png", "subcategory": "flags", "short_name": "flag"})
    (base / "emoji.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return emoji(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_shelf_is_read_once(root, cache):
    assert shelf_names(root) == ["emoji"]
    shelf = load_shelf("emoji", root)
    assert (
        len(shelf.names) == 60 and shelf.images.shape == (60, SIDE, SIDE, 2) and shelf.names[0] == "clothing/t-shirt-0"
    )
    kept = next((cache / "ldm" / "drawings").glob("emoji-*.npz"))
    stamp = kept.stat().st_mtime_ns
    assert np.array_equal(load_shelf("emoji", root).images, shelf.images) and kept.stat().st_mtime_ns == stamp
    kept.write_bytes(b"damaged")
    assert np.array_equal(load_shelf("emoji", root).images, shelf.images)


def test_only_matching_names_are_drawn(root):
    assert len(load_shelf("emoji", root, only="boot$").names) == 30
    assert load_shelf("emoji", root, only="trumpet").images.shape == (0, SIDE, SIDE, 2)


def test_normalised_cuts_to_the_ink():
    image = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((20, 40, 59, 59), fill=(255, 0, 0, 255))
    made = normalised(image)
    rows, columns = np.flatnonzero(made[..., 1].any(1)), np.flatnonzero(made[..., 1].any(0))
    assert (columns[0], columns[-1]) == (0, 63) and (rows[0], rows[-1]) == (16, 47)
    assert abs(int(made[32, 32, 0]) - 76) <= 1  # the luminance of red
    assert normalised(Image.new("RGBA", (100, 100), (9, 9, 9, 0))) is None


def test_normalised_keeps_colours_on_demand():
    image = Image.new("RGBA", (100, 100), (0, 0, 0, 0))
    ImageDraw.Draw(image).rectangle((20, 20, 79, 79), fill=(250, 10, 130, 255))
    assert normalised(image, colour=True)[32, 32].tolist() == [250, 10, 130, 255]


def test_drawings_in_colour_keep_theirs_on_a_ground(tmp_path):
    """A red square at a random place: red, or its permutation, is among the pixels; the rest is ground."""
    base = tmp_path / "red" / "drawings" / "emoji"
    (base / "64").mkdir(parents=True)
    names = [f"square-{number}" for number in range(10)]
    for name in names:
        Image.new("RGBA", (40, 40), (240, 20, 20, 255)).save(base / "64" / f"{name}.png")
    entries = [{"image": f"{name}.png", "subcategory": "forms", "short_name": name} for name in names]
    (base / "emoji.json").write_text(json.dumps(entries))
    options = {"sets": ["emoji"], "root": tmp_path / "red", "cache": tmp_path, "channels": 3}
    data = DrawingsTrain(40, dark_ground=0.0, only_label=10, **options)
    stored = np.stack([data.pixels(i) for i in range(40)]).astype(int)
    assert stored.shape == (40, 32, 32, 3) and data[1]["image"].shape == (32, 32, 3)
    assert data[7]["class_label"] == 10 and data.labels.tolist() == [10] * 40 and data.num_classes == 11
    found = [np.abs(np.sort(image, axis=-1) - [20, 20, 240]).max(axis=-1) < 8 for image in stored]
    shares = np.array([mask.mean() for mask in found])
    assert (shares > 0.1).all() and (shares < 0.99).any() and 0.3 < shares.mean() < 0.9
    red = np.mean([stored[i][found[i]][:, 0].mean() > 200 for i in range(40)])
    assert 0.5 < red < 0.95  # a third of the images have another order of the channels
    black = DrawingsTrain(10, dark_ground=1.0, **options)
    assert all((black.pixels(i)[~(black.pixels(i) > 12).any(axis=-1)] == 0).all() for i in range(10))
    grey = DrawingsTrain(10, **{**options, "channels": 1})
    assert grey.pixels(0).shape == (32, 32)


def test_names_give_classes():
    shelf = Shelf("x", np.zeros((4, 2, 2, 2), np.uint8), ("a/T-Shirt", "chelsea-boot", "boots-shirt", "boot-hill"))
    assert classes_of(shelf, WORDS).tolist() == [0, 1, 0, -1]
    assert classes_of(shelf, None).tolist() == [0, 0, 0, 0]


def test_items_have_the_class_of_their_name(root, tmp_path):
    data = DrawingsTrain(60, sets=["emoji"], words=WORDS, dark_ground=1.0, root=root, cache=tmp_path)
    assert data.num_classes == 2 and data.labels.tolist() == [0, 1] * 30 and data[1]["class_label"] == 1
    stored = np.stack([data.pixels(i) for i in range(60)])
    assert stored.shape == (60, 32, 32) and stored[:, 0].max() == 0 < stored[0].max()


def test_train_and_validation_share_no_drawing(root, tmp_path):
    train = DrawingsTrain(2, sets=["emoji"], root=root, cache=tmp_path)
    held = DrawingsVal(2, sets=["emoji"], root=root, cache=tmp_path)
    shelf = load_shelf("emoji", root)
    inside, outside = train._in_split(shelf), held._in_split(shelf)
    assert not (inside & outside).any() and (inside | outside).all() and 0 < outside.sum() < 20


def test_an_item_does_not_depend_on_the_count(root, tmp_path):
    few = DrawingsTrain(4, sets=["emoji"], root=root, cache=tmp_path)
    more = DrawingsTrain(9, sets=["emoji"], root=root, cache=tmp_path)
    assert all(np.array_equal(few.pixels(i), more.pixels(i)) for i in range(4))


def test_what_is_missing_is_named(root, tmp_path):
    with pytest.raises(UserError, match="did you mean 'emoji'"):
        load_shelf("emojis", root)
    with pytest.raises(UserError, match="fetch_benchmark_data"):
        load_shelf("noto", tmp_path)
    with pytest.raises(UserError, match="trumpet"):
        DrawingsTrain(4, sets=["emoji"], words=[["trumpet"]], root=root, cache=tmp_path)
    with pytest.raises(UserError, match="only_label"):
        DrawingsTrain(4, sets=["emoji"], only_label=-1, root=root, cache=tmp_path)
    with pytest.raises(UserError, match="dark_ground"):
        DrawingsTrain(4, sets=["emoji"], dark_ground=2.0, root=root, cache=tmp_path)


def test_vector_drawings():
    pytest.importorskip("resvg_py")
    svg = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 4 4"><rect width="2" height="4" fill="#fff"/></svg>'
    image = np.asarray(draw_svg(svg))
    half = image.shape[1] // 2
    assert (image[:, : half - 1] == 255).all() and (image[:, half + 1 :, 3] == 0).all()
    assert draw_svg("<svg") is None
