"""Features from a network of the user's own, by its dotted class name."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.checkpoint import read_checkpoint
from ldm.config import allow_target, instantiate_from_config
from ldm.errors import UserError
from ldm.evaluation.features.base import weights_digest


class ModuleFeatures:
    """A torch module class that takes no arguments and maps images (N, 1 or 3, H, W) in [-1, 1] to rows (N, D).

    Its attribute `resize` (a short description of its resizing) goes into the statistics file.
    weights: a checkpoint with the module's state dict, or None for a module that brings its own.
    Raises UserError for a name that is no such class, and for weights that do not fit.
    """

    def __init__(self, target: str, weights: str | Path | None = None, device: torch.device | str = "cpu") -> None:
        allow_target(target.rpartition(".")[0])  # the user named it on the command line
        network = instantiate_from_config({"target": target, "params": {}})
        if not isinstance(network, nn.Module):
            raise UserError(f"--extractor {target}: a {type(network).__name__} is not a torch.nn.Module")
        if weights is not None:
            try:
                network.load_state_dict(read_checkpoint(weights)["state_dict"])
            except RuntimeError as error:
                raise UserError(f"{weights}: these weights do not fit {target}") from error
        self.name = target
        self.resize = str(getattr(network, "resize", "") or "by the module")
        self.dim = int(getattr(network, "dim", 0) or 0)  # 0: known after the first images
        self.device = torch.device(device)
        self.network = network.to(self.device).eval().requires_grad_(False)
        self.weights = weights_digest(network.state_dict()) if network.state_dict() else ""

    def __call__(self, images: Tensor) -> Tensor:
        features = self.network(images.to(self.device, torch.float32))
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise UserError(f"--extractor {self.name} gave {found} for {len(images)} images; expected one row each")
        self.dim = features.shape[1]
        return features.float()
