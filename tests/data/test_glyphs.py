from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.data import glyphs as module
from ldm.data.glyphs import GlyphsTrain, GlyphsVal
from ldm.data.rendering.fonts import builtin_fonts, distance_fields, font_bitmaps, font_files, skeleton
from ldm.data.rendering.warps import BLOCK, centred, random_block, sample_fields, spline_weights
from ldm.errors import UserError

FONTS = [str(path) for path in builtin_fonts() if path.name in ("DejaVuSans.ttf", "STIXGeneral.ttf")]


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("glyphs")


def make(cache: Path, kind: type = GlyphsTrain, **options) -> GlyphsTrain:
    return kind(**{"count": 72, "fonts": FONTS, "cache": cache, **options})


def images(data: GlyphsTrain) -> np.ndarray:
    return np.stack([data.pixels(i) for i in range(len(data))])


def test_items_labels_and_ranges(cache):
    data = make(cache)
    item = data[37]
    assert item["image"].shape == (32, 32, 1) and item["image"].dtype == np.float32
    assert item["image"].min() == -1.0 and 0.5 < item["image"].max() <= 1.0
    assert np.array_equal(data.labels, np.arange(72) % 36) and item["class_label"] == 1 and data.num_classes == 36


def test_classes_choose_labels(cache):
    assert make(cache, classes="digits", count=20).labels.tolist() == list(range(10)) * 2
    assert make(cache, classes="letters", count=26).labels.tolist() == list(range(10, 36))
    some = make(cache, classes="X07", count=6)
    assert some.labels.tolist() == [0, 7, 33] * 2 and some.num_classes == 34


def test_item_i_depends_on_the_seed_and_on_i_only(cache, tmp_path):
    first = images(make(cache))
    assert np.array_equal(first, images(make(tmp_path)))  # rendered again elsewhere
    assert np.array_equal(first[:40], images(make(cache, count=40)))
    assert not np.array_equal(first, images(make(cache, seed=1)))
    assert not np.array_equal(first, images(make(cache, GlyphsVal)))


def test_images_are_the_same_across_block_borders(cache):
    longer = make(cache, count=BLOCK + 3)
    assert np.array_equal(images(longer)[:72], images(make(cache)))
    assert images(longer)[BLOCK:].max(axis=(1, 2)).min() > 200


def test_framing_is_mnists(cache):
    small = images(make(cache, size=28)).astype(float)
    ink = small > 0
    height = ink.any(2).sum(1)
    width = ink.any(1).sum(1)
    assert np.maximum(height, width).max() <= 20 and np.maximum(height, width).mean() > 18.5
    places = np.arange(28) + 0.5
    mass = small.sum((1, 2))
    for centre in ((small.sum(2) @ places) / mass, (small.sum(1) @ places) / mass):
        assert np.abs(centre - 14).max() <= 1.0 and np.abs(centre - 14).mean() < 0.4
    assert np.array_equal(images(make(cache))[:, 2:30, 2:30], small)


def test_a_legible_image_is_nearest_to_its_own_glyph(cache):
    """Undistorted digits of one font are told apart by the nearest image of the same font with another pen."""
    still = {"rotation": 0, "shear": 0, "stretch": (1, 1), "elastic": (0, 0), "filled": 0}
    thin, thick = (
        images(make(cache, count=10, classes="digits", fonts=FONTS[:1], warp={**still, "pen": (pen, pen)}))
        .reshape(10, -1)
        .astype(float)
        for pen in (2, 3)
    )
    assert thick.sum() > 1.2 * thin.sum()
    distance = ((thin[:, None] - thick[None]) ** 2).sum(-1)
    assert np.array_equal(distance.argmin(1), np.arange(10))


def test_sizes(cache):
    assert make(cache, size=64, count=3)[0]["image"].shape == (64, 64, 1)
    assert make(cache, config={"size": 28}, count=3)[0]["image"].shape == (28, 28, 1)
    assert make(cache, channels=3, count=3)[0]["image"].shape == (32, 32, 3)
    with pytest.raises(UserError, match="multiple of 8"):
        make(cache, size=30)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"count": 0}, "count"),
        ({"seed": -1}, "seed"),
        ({"classes": "digit$"}, "classes"),
        ({"classes": 123}, "quotes"),
        ({"warp": {"shera": 1}}, "did you mean 'shear'"),
        ({"fonts": ["nowhere-to-be-found"]}, "fetch_fonts"),
        ({"fonts": []}, "empty"),
        ({"flip_p": 0.5}, "flip_p"),
    ],
)
def test_mistakes_are_user_errors(cache, wrong, message):
    with pytest.raises(UserError, match=message):
        make(cache, **wrong)


def test_images_are_rendered_once_and_again_when_damaged(tmp_path, monkeypatch):
    expected = images(make(tmp_path))
    (stored,) = tmp_path.glob("glyphs-*.npy")
    monkeypatch.setattr(module, "draw_images", None)  # rendering again would fail
    assert np.array_equal(images(make(tmp_path)), expected)
    monkeypatch.undo()
    for damage in (b"", stored.read_bytes()[:1000], b"no array"):
        stored.write_bytes(damage)
        assert np.array_equal(images(make(tmp_path)), expected)
    assert not list(tmp_path.glob("*.tmp*"))


def test_a_worker_process_maps_the_file_itself(cache):
    data = make(cache)
    packed = pickle.dumps(data)
    assert len(packed) < 10_000
    assert np.array_equal(images(pickle.loads(packed)), images(data))


def test_the_fingerprint_tells_renderings_apart(cache):
    marks = [
        make(cache, **options).fingerprint()
        for options in ({}, {"seed": 1}, {"warp": {"filled": 0.0}}, {"fonts": FONTS[:1]}, {"size": 28}, {"count": 71})
    ]
    assert len(set(marks)) == 6 and make(cache).fingerprint() == marks[0]


def test_fonts_that_draw_no_digits_are_left_out():
    names = [path.name for path in builtin_fonts()]
    assert len(names) > 15 and not any(name.startswith(("cmsy", "cmex", "STIXSiz")) for name in names)
    assert len(font_bitmaps(Path(FONTS[0]))) == 36
    assert font_files(["builtin", FONTS[0]]) == builtin_fonts()


def test_a_damaged_font_is_left_out_with_a_warning(tmp_path, caplog):
    (tmp_path / "broken.ttf").write_bytes(b"not a font")
    data = make(tmp_path, count=5, fonts=[str(tmp_path / "broken.ttf"), *FONTS])
    assert len(data) == 5 and "broken.ttf" in caplog.text
    with pytest.raises(UserError, match="draws"):
        make(tmp_path, count=5, fonts=[str(tmp_path / "broken.ttf")])


def test_thinning_leaves_a_connected_line_one_pixel_wide():
    image = np.zeros((40, 40), bool)
    image[5:35, 8:14] = image[28:35, 8:32] = True  # a thick L
    line = skeleton(image)
    assert line.sum() < 60 and not (line & ~image).any()
    two_by_two = line[:-1, :-1] & line[1:, :-1] & line[:-1, 1:] & line[1:, 1:]
    assert not two_by_two.any()
    from scipy import ndimage

    assert ndimage.label(line, np.ones((3, 3)))[1] == 1
    assert np.ptp(np.flatnonzero(line.any(1))) > 22 and np.ptp(np.flatnonzero(line.any(0))) > 14


def test_thinning_keeps_holes():
    y, x = np.mgrid[:50, :50] - 24.5
    ring = (np.hypot(x, y) < 20) & (np.hypot(x, y) > 12)
    radius = np.hypot(x, y)[skeleton(ring)]
    assert len(radius) > 60 and radius.min() > 14 and radius.max() < 18


def test_distance_fields_of_a_disk():
    y, x = np.mgrid[:128, :128] - 63.5
    filled, stroke = distance_fields(np.hypot(x, y) < 32)
    assert filled.shape == (64, 64)
    assert abs(filled[32, 0] - 0.5) < 0.03 and abs(filled[32, 32] + 0.5) < 0.03
    assert stroke[32, 32] < 0.06 and abs(stroke[32, 0] - 1.0) < 0.06


def test_interpolation_reproduces_a_plane():
    side = 64
    centre = (np.arange(side) + 0.5) * 2 / side - 1
    plane = (2 * centre[None, :] + 3 * centre[:, None]).astype(np.float32)[None]
    x = np.random.default_rng(0).uniform(-0.9, 0.9, (1, 5, 5)).astype(np.float32)
    y = np.random.default_rng(1).uniform(-0.9, 0.9, (1, 5, 5)).astype(np.float32)
    assert np.allclose(sample_fields(plane, np.array([0]), x, y), 2 * x + 3 * y, atol=1e-4)


def test_spline_weights_sum_to_one():
    weights = spline_weights(np.linspace(-1, 1, 33, dtype=np.float32))
    assert np.allclose(weights.sum(-1), 1, atol=1e-5) and weights.min() >= 0


def test_centring_moves_by_whole_pixels():
    box = np.zeros((1, 20, 20))
    box[0, 2:4, 10:12] = 1
    out = centred(box, 28)
    assert out.sum() == 4 and out.shape == (1, 28, 28)
    rows, columns = np.nonzero(out[0])
    assert columns.mean() + 0.5 == pytest.approx(14) and rows.min() == 10  # it may not leave the box's reach


def test_random_numbers_are_a_function_of_their_address():
    uniform, normal = random_block(3, 1, 5)
    assert np.array_equal(uniform, random_block(3, 1, 5)[0]) and normal.shape == (BLOCK, 2, 8, 8)
    for address in ((4, 1, 5), (3, 0, 5), (3, 1, 6)):
        assert not np.array_equal(uniform, random_block(*address)[0])


def test_a_image_can_be_looked_at(cache, tmp_path):
    Image.fromarray(np.asarray(make(cache).pixels(0))).save(tmp_path / "glyph.png")
    assert Image.open(tmp_path / "glyph.png").size == (32, 32)
