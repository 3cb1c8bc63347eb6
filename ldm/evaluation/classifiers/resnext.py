"""ResNeXt-29 for small images (Xie et al. 2017, arXiv 1611.05431, section 5.4)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ResNeXtBlock(nn.Module):
    """1x1, grouped 3x3 and 1x1 convolutions with batch norm, plus the input; ReLU after the sum."""

    def __init__(self, inputs: int, outputs: int, inner: int, groups: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, stride, padding=1, groups=groups, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class ResNeXt(nn.Module):
    """Three stages of three blocks, 256, 512 and 1024 channels out; the second and third halve the side.

    ``groups`` paths of ``group_width`` channels in the first stage, twice and four times as wide after it. The default
    8x64d is the one of the paper's CIFAR table and of DPImageBench: 34,426,698 parameters for 3 channels and 10
    classes. (N, in_channels, size, size) -> logits (N, num_classes), any size of at least 4.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 10, groups: int = 8, group_width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        blocks: list[nn.Module] = []
        inputs = 64
        for stage in range(3):
            outputs, inner = 256 * 2**stage, groups * group_width * 2**stage
            for index in range(3):
                blocks.append(ResNeXtBlock(inputs, outputs, inner, groups, 2 if stage and index == 0 else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.classify = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.classify.bias)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.blocks(self.stem(images)).mean(dim=(2, 3)))
