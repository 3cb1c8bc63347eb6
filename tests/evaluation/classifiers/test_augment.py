"""Augmentations move images by the stated amounts, each on its own, and keep their values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ldm.evaluation.classifiers.augment import AUGMENTATIONS, affine, crop, flip, jitter, noise


def test_jitter_moves_a_little_and_stays_in_range() -> None:
    images = -torch.ones(64, 1, 32, 32)
    images[..., 12:20, 12:20] = 1
    torch.manual_seed(0)
    moved = jitter(images)
    assert moved.min() >= -1 and moved.max() <= 1
    assert not torch.equal(moved, images)
    assert moved[..., :8, :].max() < -0.99  # at most 2 pixels and 10 degrees away
    assert (moved.sum(dim=(1, 2, 3)) - images.sum(dim=(1, 2, 3))).abs().max() < 20


def test_affine_changes_slant_and_size_within_its_limits() -> None:
    images = -torch.ones(400, 1, 32, 32)
    images[..., 8:24, 15:17] = 1  # an upright line
    torch.manual_seed(0)
    ink = (affine(images) + 1) / 2
    assert ink.min() >= 0 and ink.max() <= 1 + 1e-6
    rows, weight = torch.arange(32.0), ink.sum(dim=(1, 2, 3))
    middle = [(ink.sum(dim=axis).squeeze(1) * rows).sum(dim=1) / weight for axis in (2, 3)]  # column, row
    assert all((place - 15.5).abs().max() < 3.2 for place in middle)  # 2 pixels, and what scaling and rounding add
    offsets = [rows - place[:, None] for place in middle]
    both = torch.einsum("nrc,nr,nc->n", ink[:, 0], offsets[1], offsets[0]) / weight
    height = torch.einsum("nr,nr->n", ink.sum(dim=3).squeeze(1), offsets[1].square()) / weight
    slant = both / height  # columns a row: at most 0.3 by the shear and tan 17 degrees by the rotation, over the size
    assert 0.45 < slant.abs().max() < (0.3 + 0.31) / 0.8 and slant.mean().abs() < 0.05
    assert height.max() / height.min() > 1.6


def test_flip_mirrors_about_half() -> None:
    torch.manual_seed(0)
    images = torch.rand(400, 3, 4, 5)
    moved = flip(images)
    same = (moved == images).flatten(1).all(dim=1)
    mirrored = (moved == images.flip(-1)).flatten(1).all(dim=1)
    assert (same ^ mirrored).all() and 150 < int(mirrored.sum()) < 250


def test_crop_is_a_window_of_the_reflected_image() -> None:
    torch.manual_seed(0)
    images = torch.rand(60, 2, 8, 8)
    padded = F.pad(images, [4] * 4, mode="reflect")
    places = set()
    for image, moved in zip(padded, crop(images), strict=True):
        found = [
            (top, left)
            for top in range(9)
            for left in range(9)
            if torch.equal(image[:, top : top + 8, left : left + 8], moved)
        ]
        places.update(found[:1])
        assert found
    assert len(places) > 20 and {top for top, _ in places} >= {0, 8}


def test_noise_has_its_size_in_every_pixel_alone() -> None:
    torch.manual_seed(0)
    added = noise(torch.zeros(4000, 1, 4, 4)).flatten(1)
    assert torch.allclose(torch.cov(added.T), 0.15**2 * torch.eye(16), atol=2e-3) and added.mean().abs() < 5e-3


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_seed_fixes_them_and_shapes_stay(name: str) -> None:
    images = torch.rand(6, 3, 8, 8)
    torch.manual_seed(3)
    first = AUGMENTATIONS[name](images)
    torch.manual_seed(3)
    assert torch.equal(AUGMENTATIONS[name](images), first) and first.shape == images.shape
