"""The classifiers have the published sizes, and every picture reaches them the same way."""

from __future__ import annotations

import pytest
import torch

from ldm.errors import UserError
from ldm.evaluation.classifiers import CNN, build_classifier, prepare


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("logreg", 1024 * 10 + 10),
        ("mlp", 1024 * 100 + 100 + 100 * 10 + 10),
        ("cnn", (9 * 32 + 32) + (9 * 32 * 64 + 64) + (9 * 64 * 128 + 128) + (2048 * 128 + 128) + (128 * 10 + 10)),
    ],
)
def test_sizes_at_32_pixels(name: str, parameters: int) -> None:
    network = build_classifier(name)
    assert count(network) == parameters
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 28), (3, 64)])
@pytest.mark.parametrize("name", ["logreg", "mlp", "cnn"])
def test_other_sizes(name: str, channels: int, size: int) -> None:
    network = build_classifier(name, in_channels=channels, size=size, num_classes=4)
    assert network(torch.zeros(2, channels, size, size)).shape == (2, 4)


def test_features_are_the_input_of_the_last_layer() -> None:
    network = CNN().eval()
    images = torch.rand(2, 1, 32, 32)
    assert network.features(images).shape == (2, CNN.feature_dim)
    assert torch.equal(network.classify(network.features(images)), network(images))


def test_preparation_is_one_grey_channel_of_one_size() -> None:
    grey = torch.rand(2, 1, 32, 32) * 2 - 1
    assert torch.equal(prepare(grey), grey)
    assert torch.allclose(prepare(grey.expand(-1, 3, -1, -1)), grey, atol=1e-6)
    assert prepare(torch.zeros(2, 3, 28, 28)).shape == (2, 1, 32, 32)
    assert prepare(grey * 3).abs().max() == 1


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="did you mean 'cnn'"):
        build_classifier("cnnn")
    with pytest.raises(UserError, match="18x18"):
        build_classifier("cnn", size=16)
