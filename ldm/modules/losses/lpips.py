"""Learned perceptual image distance, LPIPS v0.1 on VGG16 (Zhang et al. 2018)."""

from __future__ import annotations

import importlib.util
import os
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import vgg

from ldm.errors import UserError
from ldm.files import require_regular

VGG_FILE = "vgg16-397923af.pth"
VGG_ENV = "LDM_VGG16_WEIGHTS"
WIDTHS = (64, 128, 256, 512, 512)


def find_vgg_weights(path: str | os.PathLike[str] | None = None) -> Path | None:
    """The file with torchvision's VGG16 weights: `path`, else $LDM_VGG16_WEIGHTS, else torchvision's download cache.

    Returns None when the cache has none. Raises UserError when a named file does not exist. Never downloads.
    """
    for source, named in (("vgg_weights", path), (f"${VGG_ENV}", os.environ.get(VGG_ENV))):
        if named:
            if not Path(named).is_file():
                raise UserError(f"{source}: no file {named}; give the path of torchvision's {VGG_FILE}")
            return Path(named)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / VGG_FILE
    return cached if cached.is_file() else None


def find_head_weights() -> Path | None:
    """The file of the five 1x1 heads in torchmetrics (a dependency of Lightning), or None without it."""
    spec = importlib.util.find_spec("torchmetrics")  # located without importing it
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        heads = Path(folder) / "functional" / "image" / "lpips_models" / "vgg.pth"
        if heads.is_file():
            return heads
    return None


class ScalingLayer(nn.Module):
    """Maps images in [-1,1] to the ImageNet normalization that VGG expects."""

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).reshape(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).reshape(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


class VGG16Features(nn.Module):
    """The convolutions of torchvision's VGG16 (Simonyan and Zisserman 2015), cut after each block's last ReLU.

    Layers keep torchvision's numbers inside `slice1` ... `slice5`. (B,3,H,W) -> five feature maps.
    """

    def __init__(self) -> None:
        super().__init__()
        # vgg16() would also initialize its unused classifier of 120 million parameters
        layers = list(vgg.make_layers(vgg.cfgs["D"]).named_children())
        pools = [at for at, (_, layer) in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        for block, (first, last) in enumerate(zip([0, *pools], pools, strict=False), 1):
            self.add_module(f"slice{block}", nn.Sequential(OrderedDict(layers[first:last])))

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for part in self.children():
            x = part(x)
            features.append(x)
        return features


class LinearHead(nn.Module):
    """Non-negative channel weights of one feature map, a 1x1 convolution without bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, kernel_size=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class LPIPS(nn.Module):
    """Perceptual distance (B,1,1,1) of two batches of images (B,3,H,W) in [-1,1], H and W at least 16.

    Frozen, and always in evaluation mode (the heads contain dropout layers that must not be active). Weights come from
    local files (`find_vgg_weights`, `find_head_weights`) or from a checkpoint that contains them; nothing is
    downloaded. The network can be built without weights in order to load a checkpoint, but `check_ready` and `forward`
    then raise UserError.
    """

    def __init__(self, vgg_weights: str | os.PathLike[str] | None = None) -> None:
        super().__init__()
        self.scaling_layer = ScalingLayer()
        self.net = VGG16Features()
        for index, width in enumerate(WIDTHS):
            self.add_module(f"lin{index}", LinearHead(width))
        self.requires_grad_(False)
        self.eval()
        self.ready = False
        self.register_load_state_dict_pre_hook(_note_loaded)
        backbone, heads = find_vgg_weights(vgg_weights), find_head_weights()
        if backbone is not None and heads is not None:
            self._load_files(backbone, heads)

    def _load_files(self, backbone: Path, heads: Path) -> None:
        state = _tensors_of(heads)
        state |= _rename_vgg(_tensors_of(backbone), self.net, backbone)
        state |= {f"scaling_layer.{name}": value for name, value in self.scaling_layer.state_dict().items()}
        self.load_state_dict(state)

    def check_ready(self) -> None:
        """Raise UserError when no weights have been loaded."""
        if not self.ready:
            raise UserError(
                "the perceptual loss has no weights: put torchvision's VGG16 file at "
                f"$TORCH_HOME/hub/checkpoints/{VGG_FILE} (or name it in ${VGG_ENV}), see that torchmetrics is "
                "installed, which ships the heads, or set perceptual_weight: 0 in lossconfig.params"
            )

    def train(self, mode: bool = True) -> LPIPS:
        """Stay in evaluation mode for any ``mode``."""
        return super().train(False)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        self.check_ready()
        features = zip(self.net(self.scaling_layer(inputs)), self.net(self.scaling_layer(targets)), strict=True)
        distance = inputs.new_zeros(())
        for index, (ours, theirs) in enumerate(features):
            difference = (_unit_length(ours) - _unit_length(theirs)).square()
            distance = distance + getattr(self, f"lin{index}")(difference).mean(dim=(2, 3), keepdim=True)
        return distance


def _unit_length(features: Tensor) -> Tensor:
    """Scale every position's channel vector to length 1."""
    # vector_norm has gradient 0 where all channels are 0; the square root of a sum of squares would give NaN.
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)


def _note_loaded(module: LPIPS, state_dict: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    """Hook before load_state_dict that marks the network as ready when all its tensors are present."""
    if all(prefix + name in state_dict for name in module.state_dict()):
        module.ready = True


def _tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file. Raises UserError when it cannot be read."""
    require_regular(path)
    try:
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a damaged file can raise any exception
        raise UserError(f"'{path}' is no readable file of weights; copy or download it again") from error


def _rename_vgg(state: Mapping[str, Tensor], network: VGG16Features, source: Path) -> dict[str, Tensor]:
    """torchvision's `features.{n}.*` renamed for `VGG16Features`, without the classifier."""
    renamed = {}
    for name in network.state_dict():
        key = f"features.{name.partition('.')[2]}"
        if key not in state:
            raise UserError(f"{source}: no tensor {key}; this is not torchvision's VGG16 file")
        renamed[f"net.{name}"] = state[key]
    return renamed
