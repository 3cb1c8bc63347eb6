"""Residual networks for small images (He et al. 2016, arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, plus the input (through a 1x1 convolution where the shape changes)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    """Three groups of ``(depth - 2) / 6`` blocks, 16, 32 and 64 channels wide; the second and third halve the side.

    Depth 110 has 1,730,714 parameters for 3 channels and 10 classes: the paper's 1.7 M, and two 1x1 convolutions with
    batch norm where the width changes, as in DPImageBench (the paper's CIFAR networks pad with zeros there, 2,752
    parameters less). (N, in_channels, size, size) -> logits (N, num_classes), any size of at least 4. Raises UserError
    for a depth that is not 6n + 2.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 10, depth: int = 110) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise UserError(f"a residual network of depth {depth} does not exist; use 20, 32, 44, 56 or 110")
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        blocks: list[nn.Module] = []
        inputs = 16
        for group, outputs in enumerate((16, 32, 64)):
            for index in range((depth - 2) // 6):
                blocks.append(ResidualBlock(inputs, outputs, 2 if group and index == 0 else 1))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.classify = nn.Linear(inputs, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.blocks(self.stem(images)).mean(dim=(2, 3)))
