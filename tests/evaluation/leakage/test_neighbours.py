"""Nearest private images: planted copies are found, chance is not called copying, and images are marked."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.errors import UserError
from ldm.evaluation.inputs.image_source import ImageSource
from ldm.evaluation.leakage.neighbours import (
    Neighbours,
    look_for_copies,
    near_copies,
    nearest_neighbours,
    private_path,
    raw_pixels,
    save_pairs,
    some,
    take,
)


def images(count: int, seed: int, channels: int = 1) -> torch.Tensor:
    """Blurred noise of 8x8 pixels: draws from one distribution, no two of them near each other."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(count, channels, 8, 8, generator=generator) / 2).clamp(-1, 1)


def source(images: torch.Tensor) -> ImageSource:
    return ImageSource("these", lambda size: ((part, None) for part in images.split(size)))


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("batch", [1, 7, 100])
def test_nearest_equals_the_loop(k: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(0)
    queries, references = torch.randn(300, 5, generator=generator), torch.randn(40, 5, generator=generator)
    found = nearest_neighbours(queries, references.split(batch), k)
    distances = (queries[:, None].double() - references[None].double()).square().sum(dim=2).sqrt()
    expected = distances.sort(dim=1, stable=True)
    assert found.references == 40
    assert torch.allclose(found.distances.double(), expected.values[:, :k], atol=1e-6)
    assert torch.equal(found.indices, expected.indices[:, :k])


def test_a_copy_is_at_distance_zero_even_where_products_round() -> None:
    references = torch.randn(50, 3000, generator=torch.Generator().manual_seed(0)) + 100
    found = nearest_neighbours(references[[17, 4]], references.split(20))
    assert found.distances.tolist() == [[0.0], [0.0]] and found.indices.tolist() == [[17], [4]]


def test_pixel_distance_is_the_root_mean_square_difference() -> None:
    first, second = images(1, 0, 3), images(1, 1, 3)
    rows = raw_pixels(8, 3)
    distance = (rows(first) - rows(second)).norm()
    assert float(distance) == pytest.approx(float((first - second).square().mean().sqrt()), rel=1e-6)
    assert float((raw_pixels(4, 1)(torch.ones(1, 3, 8, 8)) - raw_pixels(4, 1)(-torch.ones(1, 1, 4, 4))).norm()) == (
        pytest.approx(2.0)
    )


def test_planted_copies_are_found() -> None:
    private, held_out, honest = images(300, 0), images(400, 1), images(200, 2)
    copies = (private[100:150] + 0.01 * torch.randn(50, 1, 8, 8, generator=torch.Generator().manual_seed(3))).clamp(
        -1, 1
    )
    samples = torch.cat([honest[:150], copies])
    result, found = look_for_copies(
        samples, source(private), source(held_out), raw_pixels(8, 1), space="pixels", batch_size=64
    )
    assert result.copying and 0.25 <= result.share < 0.4
    assert found.indices[150:, 0].tolist() == list(range(100, 150))
    assert result.nearest_sample < 0.02 < result.threshold
    assert torch.equal(take(source(private), found.indices[150:, 0], 64), private[100:150])
    assert "samples copy private images" in str(result)
    content = json.loads(json.dumps(result.to_dict()))
    assert content["share"] == result.share and "not covered" in content["warning"]


def test_samples_of_the_same_distribution_are_not_called_copies() -> None:
    verdicts = []
    for seed in range(5):
        result, _ = look_for_copies(
            images(400, 10 + seed),
            source(images(300, 20 + seed)),
            source(images(800, 30 + seed)),
            raw_pixels(8, 1),
            space="pixels",
        )
        verdicts.append(result.copying)
        assert result.samples == 400 and result.private == 300 and result.held_out == 400
        assert abs(result.share - result.held_out_share) < 0.06
    assert not any(verdicts)


def test_shares_are_counted_on_the_half_that_did_not_set_the_threshold() -> None:
    distances = torch.arange(100, dtype=torch.float32)[:, None]
    held_out = Neighbours(distances, torch.zeros_like(distances, dtype=torch.int64), 7)
    samples = Neighbours(torch.tensor([[-1.0], [1000.0]]), torch.zeros(2, 1, dtype=torch.int64), 7)
    result = near_copies(samples, held_out, space="x", quantile=0.5, seed=1)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    setting, counted = order[:50].float(), order[50:].float()
    assert result.threshold == pytest.approx(float(setting.quantile(0.5)))
    assert result.held_out_share == pytest.approx(float((counted < result.threshold).float().mean()))
    assert result.share == 0.5 and result.private == 7


def test_exact_intervals() -> None:
    """The rule of three: no hit in n leaves a share of about 3/n possible (3.6/n two-sided)."""
    far = Neighbours(torch.full((100, 1), 9.0), torch.zeros(100, 1, dtype=torch.int64), 5)
    held_out = Neighbours(torch.linspace(1, 2, 200)[:, None], torch.zeros(200, 1, dtype=torch.int64), 5)
    result = near_copies(far, held_out, space="x")
    assert result.share_interval[0] == 0
    assert result.share_interval[1] == pytest.approx(1 - 0.025 ** (1 / 100))


def test_images_are_marked_and_refused_without_the_word(tmp_path: Path) -> None:
    samples, private = images(6, 0), images(6, 1, 3)
    distances = torch.tensor([0.6, 0.1, 0.5, 0.2, 0.4, 0.3])
    with pytest.raises(UserError, match="--i-hold-the-private-data"):
        save_pairs(samples, private, distances, tmp_path / "pairs.png", holds_private_data=False)
    assert list(tmp_path.iterdir()) == []
    name = save_pairs(samples, private, distances, tmp_path / "pairs.png", holds_private_data=True)
    assert name == tmp_path / "pairs.PRIVATE.png" and [path.name for path in tmp_path.iterdir()] == [name.name]
    with Image.open(name) as sheet:
        assert sheet.getpixel((0, 0)) == (139, 0, 0) == sheet.getpixel((sheet.width - 1, sheet.height - 1))
        corner = torch.tensor(list(sheet.crop((2, 18, 66, 82)).convert("RGB").getdata()), dtype=torch.float32)
    drawn = corner.view(64, 64, 3)[4::8, 4::8, 0] / 127.5 - 1
    assert torch.allclose(drawn, samples[1, 0], atol=0.01), "the nearest pair comes first"


def test_private_is_in_the_file_name_once() -> None:
    assert private_path("a/b.png") == Path("a/b.PRIVATE.png")
    assert private_path("a/PRIVATE_b.png") == Path("a/PRIVATE_b.png")
    assert private_path("b") == Path("b.PRIVATE.png")


def test_some_are_chosen_by_the_seed() -> None:
    images = torch.arange(20).view(20, 1)
    assert torch.equal(some(images, 5, 1), some(images, 5, 1)) and len(some(images, 5).unique()) == 5
    assert not torch.equal(some(images, 5, 1), some(images, 5, 2)) and len(some(images, 99)) == 20


def test_mistakes_are_named(caplog: pytest.LogCaptureFixture) -> None:
    rows = torch.zeros(3, 4)
    with pytest.raises(UserError, match="2 reference images have no 3 nearest"):
        nearest_neighbours(rows, [torch.zeros(2, 4)], 3)
    with pytest.raises(UserError, match="make both alike"):
        nearest_neighbours(rows, [torch.zeros(2, 5)])
    one = Neighbours(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64), 5)
    with pytest.raises(UserError, match="too few"):
        near_copies(one, one, space="x")
    with pytest.raises(UserError, match="use the same ones"):
        near_copies(one, Neighbours(one.distances, one.indices, 6), space="x")
    with pytest.raises(UserError, match="outside \\(0, 1\\)"):
        near_copies(one, one, space="x", quantile=1.0)
    with pytest.raises(UserError, match="0 images"):
        some(rows, 0)
    with caplog.at_level(logging.WARNING):
        few = Neighbours(torch.rand(20, 1), torch.zeros(20, 1, dtype=torch.int64), 5)
        near_copies(few, few, space="x")
    assert "20 held-out images are few" in caplog.text
