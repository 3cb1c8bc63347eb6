"""Wide residual network WRN-d-k for small images (Zagoruyko and Komodakis 2016, arXiv 1605.07146)."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError


class WideBlock(nn.Module):
    """BN-ReLU-conv3x3, BN-ReLU-dropout-conv3x3, plus the input (through a 1x1 convolution where the shape changes)."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x))
        skip = x if self.shortcut is None else self.shortcut(activated)
        hidden = self.dropout(F.relu(self.norm2(self.conv1(activated))))
        return self.conv2(hidden) + skip


class WideResNet(nn.Module):
    """Three groups of ``(depth - 4) / 6`` blocks, 16k, 32k and 64k channels wide; the second and third halve the side.

    (N, in_channels, size, size) -> logits (N, num_classes), any size of at least 4. Depth 40 and width 4 have
    8,949,210 parameters for 3 channels and 10 classes. Raises UserError for a depth that is not 6n + 4.
    """

    def __init__(
        self,
        in_channels: int = 3,
        num_classes: int = 10,
        depth: int = 40,
        width: int = 4,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise UserError(f"a wide residual network of depth {depth} does not exist; use 10, 16, 22, 28, 34 or 40")
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        widths = (16, 16 * width, 32 * width, 64 * width)
        blocks: list[nn.Module] = []
        for group, (inputs, outputs) in enumerate(pairwise(widths)):
            for index in range((depth - 4) // 6):
                first = index == 0
                blocks.append(WideBlock(inputs if first else outputs, outputs, 2 if first and group else 1, dropout))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(widths[-1])
        self.classify = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.classify.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.norm(self.blocks(self.stem(images))))
        return self.classify(x.mean(dim=(2, 3)))
