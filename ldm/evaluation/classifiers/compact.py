"""`CompactCNN`: a small convolutional classifier that learns in a few epochs on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _block(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class CompactCNN(nn.Module):
    """Four convolutions with batch norm (Ioffe and Szegedy 2015) and one linear layer, 0.14 M values.

    A 5x5 convolution of stride 2, then three 3x3 ones with twice, four times and four times the ``width``, and a 2x2
    max-pool before each of the last two. The mean and the maximum of every map go to the linear layer.
    (N, in_channels, H, W), at least 8x8 pixels -> logits (N, num_classes).
    """

    def __init__(self, in_channels: int = 1, num_classes: int = 10, width: int = 24) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            _block(in_channels, width, 5, stride=2),
            _block(width, 2 * width, 3),
            nn.MaxPool2d(2),
            _block(2 * width, 4 * width, 3),
            nn.MaxPool2d(2),
            _block(4 * width, 4 * width, 3),
        )
        self.classify = nn.Linear(8 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.maps(images)
        return self.classify(torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1))
