"""The nine-layer residual network of DAWNBench's CIFAR-10 race (Page 2018, "How to train your ResNet")."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

LOGIT_SCALE = 0.125  # as in the original; keeps early softmax outputs soft without a warm-up of the last layer


def _unit(inputs: int, outputs: int, pool: bool = False) -> nn.Sequential:
    """Convolution 3x3, batch norm, ReLU, and an optional 2x2 max-pool."""
    layers: list[nn.Module] = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2)) if pool else nn.Sequential(*layers)


class ResNet9(nn.Module):
    """64-128-256-512 channels, residual pairs after the first and the third halving, global max-pool.

    (N, in_channels, size, size) -> logits (N, num_classes), any size of at least 8. 6,573,120 parameters for 3
    channels and 10 classes.
    """

    def __init__(self, in_channels: int = 3, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = _unit(in_channels, 64)
        self.layer1 = _unit(64, 128, pool=True)
        self.residual1 = nn.Sequential(_unit(128, 128), _unit(128, 128))
        self.layer2 = _unit(128, 256, pool=True)
        self.layer3 = _unit(256, 512, pool=True)
        self.residual3 = nn.Sequential(_unit(512, 512), _unit(512, 512))
        self.classify = nn.Linear(512, num_classes, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        x = self.layer1(self.stem(images))
        x = x + self.residual1(x)
        x = self.layer3(self.layer2(x))
        x = x + self.residual3(x)
        return LOGIT_SCALE * self.classify(F.adaptive_max_pool2d(x, 1).flatten(1))
