"""The classifiers have the published sizes, and every image reaches them the same way."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ldm.errors import UserError
from ldm.evaluation.classifiers.networks import (
    CLASSIFIERS,
    CNN,
    Preparation,
    build_classifier,
    classifier_name,
    prepare,
)
from ldm.evaluation.classifiers.resnet import ResNet
from ldm.evaluation.classifiers.wide_resnet import WideResNet


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def as_published(name: str) -> torch.nn.Sequential:
    """The three small classifiers at 32 pixels, written a second time as plain lists of layers."""
    nn = torch.nn
    if name == "logreg":
        return nn.Sequential(nn.Flatten(), nn.Linear(1024, 10))
    if name == "mlp":
        return nn.Sequential(nn.Flatten(), nn.Linear(1024, 100), nn.ReLU(), nn.Linear(100, 10))
    maps = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)]
    ends = [nn.Conv2d(64, 128, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2048, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(*maps, *ends)


@pytest.mark.parametrize(("name", "parameters"), [("logreg", 10_250), ("mlp", 103_510), ("cnn", 356_234)])
def test_small_classifiers_compute_what_their_layers_do(name: str, parameters: int) -> None:
    network, reference = build_classifier(name).eval(), as_published(name).eval()
    assert [tuple(ours.shape) for ours in network.parameters()] == [tuple(one.shape) for one in reference.parameters()]
    assert count(network) == parameters
    with torch.no_grad():
        for ours, theirs in zip(network.parameters(), reference.parameters(), strict=True):
            theirs.copy_(ours)
    images = torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(network(images), reference(images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "width"), [("compact-cnn", 24), ("compact-cnn-48", 48)])
def test_the_compact_cnn_is_its_layers(name: str, width: int) -> None:
    network = build_classifier(name, in_channels=1).eval()
    kernels = convolutions((1, width, 5), (width, 2 * width, 3), (2 * width, 4 * width, 3), (4 * width, 4 * width, 3))
    assert count(network) == kernels + 2 * 11 * width + 10 * (8 * width + 1)
    state = iter(network.state_dict().values())
    images = maps = torch.rand(5, 1, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    for stride, padding, pooled in ((2, 2, False), (1, 1, True), (1, 1, True), (1, 1, False)):
        maps = F.conv2d(maps, next(state), stride=stride, padding=padding)
        weight, bias, mean, variance, _ = (next(state) for _ in range(5))
        maps = F.relu(F.batch_norm(maps, mean, variance, weight, bias))
        maps = F.max_pool2d(maps, 2) if pooled else maps
    assert maps.shape == (5, 4 * width, 4, 4)
    ends = torch.cat([maps.flatten(2).mean(dim=2), maps.flatten(2).max(dim=2).values], dim=1)
    torch.testing.assert_close(network(images), F.linear(ends, next(state), next(state)), rtol=1e-4, atol=1e-5)


def convolutions(*shapes: tuple[int, int, int]) -> int:
    """Weights of square convolutions (inputs, outputs, side) without bias."""
    return sum(inputs * outputs * side * side for inputs, outputs, side in shapes)


def wide_resnet_count(depth: int, k: int, classes: int) -> int:
    """Counted from the paper's table 1: convolutions, two values a channel of each batch norm, one linear layer."""
    blocks, weights, norms, inputs = (depth - 4) // 6, convolutions((3, 16, 3)), 0, 16
    for outputs in (16 * k, 32 * k, 64 * k):
        weights += convolutions((inputs, outputs, 1), (inputs, outputs, 3))
        weights += (2 * blocks - 1) * convolutions((outputs, outputs, 3))
        norms += 2 * inputs + (2 * blocks - 1) * 2 * outputs
        inputs = outputs
    return weights + norms + 2 * inputs + inputs * classes + classes


def resnext_count(classes: int) -> int:
    weights, inputs = convolutions((3, 64, 3)) + 2 * 64, 64
    for stage in range(3):
        outputs, inner = 256 * 2**stage, 512 * 2**stage
        weights += convolutions((inputs, outputs, 1)) + 2 * outputs
        for _ in range(3):
            weights += convolutions((inputs, inner, 1), (inner, outputs, 1)) + convolutions((inner, inner, 3)) // 8
            weights += 4 * inner + 2 * outputs
            inputs = outputs
    return weights + inputs * classes + classes


def resnet_count(depth: int, classes: int) -> int:
    """Counted from the paper: 6n + 2 layers, with 1x1 convolutions on the two changed shortcuts."""
    blocks, weights, inputs = (depth - 2) // 6, convolutions((3, 16, 3)) + 2 * 16, 16
    for outputs in (16, 32, 64):
        weights += 0 if inputs == outputs else convolutions((inputs, outputs, 1)) + 2 * outputs
        weights += convolutions((inputs, outputs, 3)) + (2 * blocks - 1) * convolutions((outputs, outputs, 3))
        weights += 2 * blocks * 2 * outputs
        inputs = outputs
    return weights + inputs * classes + classes


@pytest.mark.parametrize(
    ("name", "parameters", "counted"),
    [
        ("wrn-40-4", 8_949_210, wide_resnet_count(40, 4, 10)),  # 8.9 M in the paper
        ("resnet-9", 6_573_120, None),  # 6.57 M
        ("resnet-110", 1_730_714, resnet_count(110, 10)),  # 1.7 M in the paper
        ("resnext-29", 34_426_698, resnext_count(10)),  # 34.4 M in the paper
    ],
)
def test_sizes_of_the_published_networks(name: str, parameters: int, counted: int | None) -> None:
    network = build_classifier(name, in_channels=3)
    assert count(network) == parameters
    assert counted in (None, parameters)


def test_more_classes_add_one_row_each() -> None:
    sizes = [count(build_classifier("wrn-40-4", in_channels=3, num_classes=classes)) for classes in (10, 100)]
    assert sizes[1] == 8_972_340 == sizes[0] + 90 * 257


@pytest.mark.parametrize("name", ["wrn-40-4", "resnet-9", "resnet-110", "resnext-29"])
def test_large_networks_take_any_size_and_learn_from_every_parameter(name: str) -> None:
    network = build_classifier(name, in_channels=1, size=8, num_classes=3)
    logits = network(torch.rand(2, 1, 8, 8))
    assert logits.shape == (2, 3) and torch.isfinite(logits).all()
    logits.logsumexp(dim=1).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_resnet_110_has_as_many_layers_as_its_name_says() -> None:
    network = build_classifier("resnet")
    weighted = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(weighted) + 1 == 110  # and the linear layer
    strides = [module.stride for module in weighted if module.stride != (1, 1)]
    assert strides == [(2, 2), (2, 2)]
    with pytest.raises(UserError, match="depth 111"):
        ResNet(depth=111)


def test_wide_resnet_keeps_to_its_depths_and_dropout() -> None:
    with pytest.raises(UserError, match="depth 39"):
        WideResNet(depth=39)
    network = build_classifier("wrn", wrn_dropout=0.7)
    rates = {module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.7}


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


def test_preparation_of_colour_and_of_the_mean_image() -> None:
    colour = torch.rand(4, 3, 32, 32) * 2 - 1
    assert torch.equal(Preparation(32, 3)(colour), colour)
    assert Preparation(28, 3)(colour[:, :1]).shape == (4, 3, 28, 28)
    centred = Preparation(32, 3, colour.mean(dim=0))(colour)
    assert torch.allclose(centred, (colour + 1) / 2 - ((colour + 1) / 2).mean(dim=0), atol=1e-6)


def test_dropout_of_the_cnn_is_where_its_protocol_has_it() -> None:
    torch.manual_seed(0)
    images = torch.rand(8, 1, 32, 32)
    for drop_maps in (False, True):
        network = CNN(drop_maps=drop_maps).eval()
        expected = network(images)
        inputs: list[torch.Tensor] = []
        network.dropout.register_forward_hook(lambda _module, given, _output, inputs=inputs: inputs.append(given[0]))
        assert torch.equal(network(images), expected)
        shapes = [tuple(given.shape[1:]) for given in inputs]
        assert shapes == ([(32, 15, 15), (64, 6, 6), (128,)] if drop_maps else [(2048,), (128,)])


def test_names_are_read_in_the_spellings_in_use() -> None:
    assert [classifier_name(name) for name in ("wrn_40_4", "WRN", "resnet9", "resnext", "cnn")] == [
        "wrn-40-4",
        "wrn-40-4",
        "resnet-9",
        "resnext-29",
        "cnn",
    ]
    assert [classifier_name(name) for name in CLASSIFIERS] == list(CLASSIFIERS)


def test_mistakes_are_named() -> None:
    with pytest.raises(UserError, match="did you mean 'cnn'"):
        build_classifier("cnnn")
    with pytest.raises(UserError, match="18x18"):
        build_classifier("cnn", size=16)
