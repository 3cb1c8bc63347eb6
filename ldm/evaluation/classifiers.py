"""The three classifiers of the downstream accuracy, and the one way pictures reach them."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError, nearest
from ldm.evaluation.images import resize, to_grey

INPUT_SIZE = 32


def prepare(images: Tensor, size: int = INPUT_SIZE) -> Tensor:
    """Pictures (N, 1 or 3, H, W) in [-1, 1] -> classifier input (N, 1, size, size) float32 in [-1, 1].

    Generated and real pictures both go through here, so that neither side is normalised differently.
    """
    return resize(to_grey(images.float()), size).clamp(-1, 1)


class LogisticRegression(nn.Module):
    """One linear layer on the pixels: (N, in_channels, size, size) -> logits (N, num_classes)."""

    def __init__(self, in_channels: int = 1, size: int = INPUT_SIZE, num_classes: int = 10) -> None:
        super().__init__()
        self.classify = nn.Linear(in_channels * size * size, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(images.flatten(1))


class MLP(nn.Module):
    """One hidden layer of 100 on the pixels: (N, in_channels, size, size) -> logits (N, num_classes)."""

    def __init__(self, in_channels: int = 1, size: int = INPUT_SIZE, num_classes: int = 10, hidden: int = 100) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_channels * size * size, hidden)
        self.classify = nn.Linear(hidden, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(F.relu(self.hidden(images.flatten(1))))


class CNN(nn.Module):
    """Convolutions 32-64-128 (3x3, no padding) with a 2x2 max-pool after the first two, then 128 and num_classes.

    At 32x32 the flattened map has 2048 values. Dropout 0.5 before each linear layer, in training only.
    (N, in_channels, size, size) -> logits (N, num_classes).
    """

    feature_dim = 128

    def __init__(self, in_channels: int = 1, size: int = INPUT_SIZE, num_classes: int = 10) -> None:
        super().__init__()
        side = ((size - 2) // 2 - 2) // 2 - 2
        if side < 1:
            raise UserError(f"the CNN needs pictures of at least 18x18 pixels, not {size}x{size}")
        self.conv1 = nn.Conv2d(in_channels, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.conv3 = nn.Conv2d(64, 128, 3)
        self.dropout = nn.Dropout(0.5)
        self.hidden = nn.Linear(128 * side * side, self.feature_dim)
        self.classify = nn.Linear(self.feature_dim, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Activations (N, 128) before the last layer, non-negative."""
        x = F.relu(F.max_pool2d(self.conv1(images), 2))  # relu commutes with the maximum and is cheaper after it
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = F.relu(self.conv3(x)).flatten(1)
        return F.relu(self.hidden(self.dropout(x)))

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.dropout(self.features(images)))


CLASSIFIERS: dict[str, type[LogisticRegression] | type[MLP] | type[CNN]] = {
    "logreg": LogisticRegression,
    "mlp": MLP,
    "cnn": CNN,
}
DISPLAY_NAMES = {"logreg": "Logistic regression", "mlp": "MLP", "cnn": "CNN"}


def build_classifier(name: str, *, in_channels: int = 1, size: int = INPUT_SIZE, num_classes: int = 10) -> nn.Module:
    """A new classifier by name (logreg, mlp, cnn). Raises UserError for an unknown name."""
    if name not in CLASSIFIERS:
        raise UserError(f"unknown classifier {name!r}{nearest(name, CLASSIFIERS)} (known: {', '.join(CLASSIFIERS)})")
    return CLASSIFIERS[name](in_channels=in_channels, size=size, num_classes=num_classes)
