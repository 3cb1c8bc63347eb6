"""The Inception network that FID is defined with (weights of 2015-12-05, 2048 features)."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError, all_lines
from ldm.evaluation.features.base import weights_digest
from ldm.evaluation.inputs.images import to_rgb
from ldm.files import require_regular

# FID programs keep the same weights under these names in the torch hub folder.
_CACHED_NAMES = ("weights-inception-2015-12-05-6726825d.pth", "pt_inception-2015-12-05-6726825d.pth")
_STAND_INS = (
    "pass --weights FILE (weights-inception-2015-12-05-6726825d.pth of torch-fidelity), or use a stand-in that needs "
    "no download: --extractor efficientnet-lite0, digits-cnn or pixels (their distances are not FID)"
)


class InceptionFeatures:
    """Final average-pool features of the FID Inception.

    Images are resized to 299x299 as floats by torch's bilinear rule, as pytorch-fid does; with quantised images
    the numbers are those that pytorch-fid prints for PNG files. Heusel et al. 2017, section 3.
    Raises UserError when torch-fidelity or the weights are not available.
    """

    name, dim, resize = "inception", 2048, "bilinear 299 (torch, no anti-aliasing)"

    def __init__(self, weights: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        network = _network(Path(weights) if weights is not None else _cached_weights())
        used = {name: value for name, value in network.state_dict().items() if not name.startswith("fc.")}
        self.weights = weights_digest(used)
        # The forward pass visits the children in this order; fc comes after the features.
        self.layers = nn.Sequential(*(child for name, child in network.named_children() if name != "fc")).to(device)
        self.classify = network.fc.weight.detach().to(device)  # type: ignore[union-attr, operator]
        self.device = torch.device(device)

    def __call__(self, images: Tensor) -> Tensor:
        images = to_rgb(images.to(self.device, torch.float32))
        if images.shape[-2:] != (299, 299):
            images = F.interpolate(images, size=(299, 299), mode="bilinear", align_corners=False)
        # relu writes in place inside the network, so the network must not get a view of the caller's images
        return self.layers(images.contiguous()).flatten(1)

    def logits(self, features: Tensor) -> Tensor:
        """Logits (N, 1008) from features (N, 2048), without the bias: the form the Inception score is defined with."""
        return features @ self.classify.T


def _cached_weights() -> Path | None:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    return next((folder / name for name in _CACHED_NAMES if (folder / name).is_file()), None)


def _network(weights: Path | None) -> nn.Module:
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise UserError(
            "the inception extractor needs the package torch-fidelity: pip install torch-fidelity, "
            "or use --extractor digits-cnn or pixels (their distances are not FID)"
        ) from error
    if weights is not None:
        _check_weights(weights)
    try:
        path = None if weights is None else str(weights)
        return FeatureExtractorInceptionV3("fid", ["2048"], feature_extractor_weights_path=path)
    except OSError as error:  # URLError and timeouts are OSErrors
        raise UserError(f"the Inception weights could not be downloaded ({all_lines(error)}): {_STAND_INS}") from error
    except RuntimeError as error:
        if weights is None:  # torch.hub reports a broken download this way
            raise UserError(f"the download of the Inception weights is broken: {_STAND_INS}") from error
        raise UserError(f"{weights}: these are not the weights of the FID Inception; {_STAND_INS}") from error


def _check_weights(weights: Path) -> None:
    """Refuse files that hold more than tensors, because torch-fidelity unpickles without a check and would run code."""
    if weights.exists():
        require_regular(weights)
    try:
        content = torch.load(weights, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{weights}: no such file; {_STAND_INS}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"{weights}: not a readable file of Inception weights; {_STAND_INS}") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{weights}: not a plain state dict of Inception weights; {_STAND_INS}")
