"""The classifiers of the downstream accuracy by name, and the preprocessing of their images."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError, nearest
from ldm.evaluation.classifiers.compact import CompactCNN
from ldm.evaluation.classifiers.resnet import ResNet
from ldm.evaluation.classifiers.resnet9 import ResNet9
from ldm.evaluation.classifiers.resnext import ResNeXt
from ldm.evaluation.classifiers.wide_resnet import WideResNet
from ldm.evaluation.inputs.images import resize, to_grey, to_rgb

INPUT_SIZE = 32


def prepare(images: Tensor, size: int = INPUT_SIZE, channels: int = 1) -> Tensor:
    """Images (N, 1 or 3, H, W) in [-1, 1] -> classifier input (N, channels, size, size) float32 in [-1, 1].

    Generated and real images share this function, so that both are normalised in the same way.
    """
    images = to_grey(images.float()) if channels == 1 else to_rgb(images.float())
    return resize(images, size).clamp(-1, 1)


@dataclass(frozen=True)
class Preparation:
    """The input form of a trained classifier: side, channels, and the mean training image if it is subtracted.

    With a ``mean`` (channels, size, size) the input is half the difference from it, in [-1, 1]. This equals the
    difference of images in [0, 1], as in accuracy/train_classifier.py of the original.
    """

    size: int = INPUT_SIZE
    channels: int = 1
    mean: Tensor | None = None

    def __call__(self, images: Tensor) -> Tensor:
        prepared = prepare(images, self.size, self.channels)
        return prepared if self.mean is None else (prepared - self.mean.to(prepared.device)) / 2


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

    At 32x32 the flattened map has 2048 values. Dropout 0.5 before each linear layer, in training only; with
    ``drop_maps`` after both max-pools and before the last layer instead, as in DPDM (Dockhorn et al. 2023).
    (N, in_channels, size, size) -> logits (N, num_classes).
    """

    feature_dim = 128

    def __init__(
        self, in_channels: int = 1, size: int = INPUT_SIZE, num_classes: int = 10, drop_maps: bool = False
    ) -> None:
        super().__init__()
        side = ((size - 2) // 2 - 2) // 2 - 2
        if side < 1:
            raise UserError(f"the CNN needs images of at least 18x18 pixels, not {size}x{size}")
        self.conv1 = nn.Conv2d(in_channels, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.conv3 = nn.Conv2d(64, 128, 3)
        self.dropout = nn.Dropout(0.5)
        self.drop_maps = drop_maps
        self.hidden = nn.Linear(128 * side * side, self.feature_dim)
        self.classify = nn.Linear(self.feature_dim, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Activations (N, 128) before the last layer, non-negative."""
        x = F.relu(F.max_pool2d(self.conv1(images), 2))  # relu commutes with the maximum and is cheaper after it
        x = self.dropout(x) if self.drop_maps else x
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = self.dropout(x) if self.drop_maps else x
        x = F.relu(self.conv3(x)).flatten(1)
        return F.relu(self.hidden(x if self.drop_maps else self.dropout(x)))

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.dropout(self.features(images)))


DISPLAY_NAMES = {
    "logreg": "Logistic regression",
    "mlp": "MLP",
    "cnn": "CNN",
    "compact-cnn": "compact CNN",
    "compact-cnn-48": "compact CNN, 48 maps",
    "wrn-40-4": "WRN-40-4",
    "resnet-9": "ResNet-9",
    "resnet-110": "ResNet-110",
    "resnext-29": "ResNeXt-29 8x64d",
}
CLASSIFIERS = tuple(DISPLAY_NAMES)
ALIASES = {
    "logistic-regression": "logreg",
    "wrn": "wrn-40-4",
    "wrn40-4": "wrn-40-4",
    "resnet9": "resnet-9",
    "resnet": "resnet-110",
    "resnet110": "resnet-110",
    "resnext": "resnext-29",
}


def classifier_name(name: str) -> str:
    """The classifier's name in results: `wrn_40_4` -> `wrn-40-4`. Raises UserError for an unknown classifier."""
    spelt = name.lower().replace("_", "-")
    spelt = ALIASES.get(spelt, spelt)
    if spelt not in CLASSIFIERS:
        raise UserError(f"unknown classifier {name!r}{nearest(name, CLASSIFIERS)} (known: {', '.join(CLASSIFIERS)})")
    return spelt


def build_classifier(
    name: str,
    *,
    in_channels: int = 1,
    size: int = INPUT_SIZE,
    num_classes: int = 10,
    wrn_dropout: float = 0.3,
    drop_maps: bool = False,
) -> nn.Module:
    """A new classifier by name (`CLASSIFIERS` or an alias); wrn_dropout and drop_maps are for the WRN and the CNN.

    (N, in_channels, size, size) -> logits (N, num_classes). Raises UserError for an unknown name.
    """
    name = classifier_name(name)
    if name == "logreg":
        return LogisticRegression(in_channels, size, num_classes)
    if name == "mlp":
        return MLP(in_channels, size, num_classes)
    if name == "cnn":
        return CNN(in_channels, size, num_classes, drop_maps)
    if name == "wrn-40-4":
        return WideResNet(in_channels, num_classes, dropout=wrn_dropout)
    if name.startswith("compact-cnn"):
        return CompactCNN(in_channels, num_classes, width=48 if name == "compact-cnn-48" else 24)
    others = {"resnet-9": ResNet9, "resnet-110": ResNet, "resnext-29": ResNeXt}
    return others[name](in_channels, num_classes)
