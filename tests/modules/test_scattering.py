"""Wavelet features against a slow transform in the frequency domain, and the feature map made of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.modules.feature_map import FeatureMap
from ldm.modules.scattering import Scattering, morlet


def spectrum(kernel: Tensor, size: int) -> Tensor:
    """Fourier transform of a kernel (k, k) around the origin of a periodic image."""
    image = torch.zeros(size, size, dtype=kernel.dtype)
    middle = kernel.shape[0] // 2
    for row in range(kernel.shape[0]):
        for column in range(kernel.shape[1]):
            image[(row - middle) % size, (column - middle) % size] += kernel[row, column]
    return torch.fft.fft2(image)


def wavelet(scale: int, turn: int) -> Tensor:
    real, imaginary = morlet(0.8 * 2**scale, 0.75 * math.pi / 2**scale, math.pi * turn / 8, 0.5)
    return torch.complex(real, imaginary)


def slow(image: Tensor, scale: int, turn: int) -> Tensor:
    """Modulus of the wavelet coefficients of an image (n, n) at full resolution; conv2d correlates."""
    return torch.fft.ifft2(torch.fft.fft2(image.double()) * spectrum(wavelet(scale, turn), len(image)).conj()).abs()


def window(image: Tensor) -> Tensor:
    axis = torch.arange(-5, 6, dtype=torch.float64)
    row = torch.exp(-(axis**2) / (2 * 1.6**2))
    kernel = torch.outer(row, row) / row.sum() ** 2
    return torch.fft.ifft2(torch.fft.fft2(image) * spectrum(kernel, len(image))).real[::4, ::4]


def test_first_order_is_the_smoothed_modulus_of_each_wavelet() -> None:
    image = torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
    features = Scattering(32)(image[None])[0].double()
    torch.testing.assert_close(features[0], window(image.double()), atol=1e-5, rtol=1e-5)
    for turn in (0, 3):
        torch.testing.assert_close(features[1 + turn], window(slow(image, 0, turn)), atol=1e-4, rtol=1e-3)
        coarse = window(slow(image, 1, turn))  # sampled every second pixel by the fast path before it is smoothed
        assert float((features[9 + turn] - coarse).abs().max()) < 0.1 * float(coarse.max())


def test_second_order_is_the_coarser_wavelet_of_the_first() -> None:
    image = torch.rand(32, 32, generator=torch.Generator().manual_seed(1))
    features = Scattering(32)(image[None])[0].double()
    expected = window(slow(slow(image, 0, 2).float(), 1, 5))
    assert float((features[17 + 2 * 8 + 5] - expected).abs().max()) < 0.15 * float(expected.max())


def test_wavelets_have_no_mean_and_images_are_independent() -> None:
    flat = Scattering(16)(torch.full((1, 16, 16), 0.7))
    assert float(flat[:, 1:].abs().max()) < 1e-5
    images = torch.rand(3, 16, 16)
    scattering = Scattering(16)
    torch.testing.assert_close(scattering(images)[1:2], scattering(images[1:2]))


@pytest.mark.parametrize(("size", "scales"), [(30, 2), (32, 0), (12, 3), (8, 2)])
def test_sizes_that_do_not_divide_are_refused(size: int, scales: int) -> None:
    with pytest.raises(UserError, match="scattering"):
        Scattering(size, scales)


def feature_map(rank: int = 10) -> FeatureMap:
    public = torch.rand(40, 1, 16, 16, generator=torch.Generator().manual_seed(2)) * 2 - 1
    return FeatureMap.fit(public, rank)


def test_the_map_gives_rows_of_unit_length_and_survives_a_file() -> None:
    features = feature_map()
    images = torch.rand(7, 1, 16, 16) * 2 - 1
    rows = features(images)
    assert rows.shape == (7, 10) and features.rank == 10
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(7))
    again = FeatureMap.from_state(features.state(), "file")
    torch.testing.assert_close(again(images), rows, atol=2e-3, rtol=2e-3)
    assert again.digest() == FeatureMap.from_state(again.state(), "file").digest() != features.digest()


def test_features_of_an_image_do_not_depend_on_others() -> None:
    features, images = feature_map(), torch.rand(5, 1, 16, 16) * 2 - 1
    torch.testing.assert_close(features(images)[2:3], features(images[2:3]))


def test_mistakes_are_named() -> None:
    features = feature_map()
    with pytest.raises(UserError, match="takes images of shape"):
        features(torch.zeros(2, 3, 16, 16))
    with pytest.raises(UserError, match="rank 999"):
        FeatureMap.fit(torch.rand(40, 1, 16, 16), 999)
    with pytest.raises(UserError, match="no feature map"):
        FeatureMap.from_state({"centre": torch.zeros(3)}, "file")
