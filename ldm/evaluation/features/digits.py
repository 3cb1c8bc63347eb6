"""digits-cnn: features of a small CNN trained on public images of characters, a stand-in for Inception."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoint import read_checkpoint, save_safetensors
from ldm.errors import UserError
from ldm.evaluation.classifiers.downstream import fit_classifier
from ldm.evaluation.classifiers.networks import CNN, INPUT_SIZE, prepare
from ldm.evaluation.classifiers.protocols import ClassifierProtocol
from ldm.evaluation.features.base import weights_digest
from ldm.samples import SampleSet


class DigitFeatures:
    """The 128 activations before the last layer of a character classifier (see `fit`).

    Distances in this space are not FID and compare only with distances by the same weights.
    """

    name, dim, resize = "digits-cnn", CNN.feature_dim, f"grey, bilinear {INPUT_SIZE} (anti-aliased)"

    def __init__(self, network: CNN, device: torch.device | str = "cpu") -> None:
        self.network = network.to(device).eval().requires_grad_(False)
        self.device = torch.device(device)
        self.weights = weights_digest(network.state_dict())

    def __call__(self, images: Tensor) -> Tensor:
        return self.network.features(prepare(images.to(self.device, torch.float32)))

    def logits(self, features: Tensor) -> Tensor:
        """Logits (N, classes) of the characters the network was trained on, from features (N, 128)."""
        return self.network.classify(features)

    @classmethod
    def fit(
        cls,
        public: SampleSet,
        *,
        epochs: int = 10,
        lr: float = 1e-3,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> DigitFeatures:
        """Train on labelled public images; the same images and seed give the same weights on the same machine."""
        if public.labels is None:
            raise UserError("digits-cnn is trained on labelled images; this set has no labels")
        protocol = ClassifierProtocol().changed(epochs=epochs, lr=lr, augment=("jitter",), grey=True)
        network = fit_classifier("cnn", public, protocol, seed=seed, device=device)
        assert isinstance(network, CNN)
        return cls(network, device)

    def save(self, path: str | Path) -> None:
        """Write the weights as `.safetensors`."""
        state = {name: value.cpu().contiguous() for name, value in self.network.state_dict().items()}
        save_safetensors(state, path, {"kind": self.name, "digest": self.weights})

    @classmethod
    def load(cls, path: str | Path, device: torch.device | str = "cpu") -> DigitFeatures:
        """Read weights that `save` wrote. Raises UserError when the file holds something else."""
        state = read_checkpoint(path)["state_dict"]
        last = state.get("classify.weight")
        if not isinstance(last, Tensor) or last.ndim != 2:
            raise UserError(f"{path}: not a digits-cnn weight file; make one with fid/train_digits_cnn.py")
        network = CNN(in_channels=1, size=INPUT_SIZE, num_classes=len(last))
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(f"{path}: not a digits-cnn weight file; make one with fid/train_digits_cnn.py") from error
        return cls(network, device)
