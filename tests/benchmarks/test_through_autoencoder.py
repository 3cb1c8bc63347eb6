"""What an autoencoder keeps: the error of pixels, and reconstructions in the images' order and range."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.through_autoencoder import all_of, error, through
from ldm.data.base import ArrayDataset


class Halved(nn.Module):
    """Stands for a model: a mean of half the image and a log-variance of no effect; ``scale_factor`` as in training."""

    channels = 3
    scale_factor = torch.tensor(4.0)

    def encode_moments(self, images: Tensor) -> Tensor:
        return torch.cat([images / 2, torch.full_like(images, 9.0)], dim=1)

    def decode_first_stage(self, latents: Tensor) -> Tensor:
        return latents / self.scale_factor * 4  # twice the image


def test_reconstructions_keep_order_and_range() -> None:
    images = torch.linspace(-1, 1, 7 * 3 * 16).view(7, 3, 4, 4)
    assert torch.allclose(through(Halved(), images, batch=3), (2 * images).clamp(-1, 1), atol=1e-6)


def test_the_error_is_of_pixels_from_0_to_1() -> None:
    assert error(torch.ones(2, 3, 4, 4), -torch.ones(2, 3, 4, 4)) == 1.0
    assert abs(error(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.2)) - 0.1) < 1e-6


def test_a_data_set_is_read_channels_first() -> None:
    pixels = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).view(2, 4, 4, 3).numpy()
    images, labels = all_of(ArrayDataset(pixels, torch.tensor([1, 0]).numpy()))
    assert images.shape == (2, 3, 4, 4) and labels.tolist() == [1, 0]
    assert abs(float(images[0, 2, 0, 1]) - (pixels[0, 0, 1, 2] / 127.5 - 1)) < 1e-6
