"""`FeatureMap`: wavelet features of images in public directions, on which a private classifier is trained."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.errors import UserError
from ldm.modules.scattering import Scattering

#: Channels that are normalised together (27 groups of 3 for two scales and eight angles).
GROUP = 3
#: Height and width from which images have features of two scales.
SMALLEST = 16
#: Images whose features are computed at once.
BATCH = 500


@dataclass(frozen=True, eq=False)  # tensors have no single truth value
class FeatureMap:
    """Scattering of each colour channel, group normalisation, k public directions, unit length.

    ``centre`` (d,) and ``directions`` (d, k) come from public images; the features of an image depend on no other
    image. ``size``: height and width of the images; ``channels``: their colour channels.
    """

    size: int
    channels: int
    centre: Tensor
    directions: Tensor

    def __post_init__(self) -> None:
        d = self.channels * self.scattering.channels * self.scattering.side**2
        if self.centre.shape != (d,) or self.directions.ndim != 2 or len(self.directions) != d:
            raise UserError(
                f"features of {self.channels} × {self.size} × {self.size} pixels have {d} numbers; the map has "
                f"{tuple(self.centre.shape)} and {tuple(self.directions.shape)}"
            )
        for name in ("centre", "directions"):
            value = getattr(self, name).detach().cpu().float()
            if not torch.isfinite(value).all():
                raise UserError(f"the {name} of a feature map has numbers that are not finite")
            object.__setattr__(self, name, value)

    @cached_property
    def scattering(self) -> Scattering:
        """The wavelet features of one channel."""
        return scattering_of(self.size)

    @property
    def rank(self) -> int:
        """Number of features k."""
        return self.directions.shape[1]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features (N, k) float32 of unit length of images (N, C, size, size) in [-1, 1]."""
        expected = (self.channels, self.size, self.size)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise UserError(f"the feature map takes images of shape {expected}, not {tuple(images.shape[1:])}")
        parts = []
        for batch in images.split(BATCH):
            rows = (raw_features(batch, self.scattering) - self.centre) @ self.directions
            parts.append(F.normalize(rows, dim=1))
        return torch.cat(parts) if parts else torch.zeros(0, self.rank)

    def digest(self) -> str:
        """SHA-256 of the numbers, in hexadecimal."""
        result = hashlib.sha256(f"{self.size} {self.channels}".encode())
        for value in (self.centre, self.directions):
            result.update(value.contiguous().numpy().tobytes())
        return result.hexdigest()

    def state(self) -> dict[str, Tensor]:
        """Tensors for a file, in half precision."""
        return {
            "centre": self.centre.half(),
            "directions": self.directions.half(),
            "shape": torch.tensor([self.channels, self.size]),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], source: str) -> FeatureMap:
        """Read :meth:`state` back. Raises UserError naming ``source`` for other tensors."""
        if set(state) != {"centre", "directions", "shape"} or state["shape"].shape != (2,):
            raise UserError(f"{source}: holds no feature map; make one with scripts/public_features.py")
        channels, size = (int(value) for value in state["shape"])
        return cls(size, channels, state["centre"], state["directions"])

    @classmethod
    def fit(cls, images: Tensor, rank: int, whitening: float = 0.5) -> FeatureMap:
        """The leading ``rank`` principal directions of *public* images (N, C, size, size) in [-1, 1].

        ``whitening`` in [0, 1]: 1 gives every direction unit variance, 0 keeps the scale of the features. Raises
        UserError for a rank or whitening out of range.
        """
        channels, size = images.shape[1], images.shape[2]
        scattering = scattering_of(size)
        rows = torch.cat([raw_features(batch, scattering) for batch in images.split(BATCH)])
        if not 1 <= rank < min(rows.shape):
            raise UserError(f"rank {rank} is outside 1..{min(rows.shape) - 1}, what {len(rows)} public images give")
        if not 0 <= whitening <= 1:
            raise UserError(f"whitening {whitening} is outside [0, 1]; 1 gives all directions one variance")
        centre = rows.mean(dim=0)
        values, vectors = torch.linalg.eigh(torch.cov(rows.T))
        values, vectors = values.flip(0)[:rank].clamp(min=1e-9), vectors.flip(1)[:, :rank]
        return cls(size, channels, centre, (vectors * values ** (-whitening / 2)).contiguous())


def scattering_of(size: int) -> Scattering:
    """Two scales, or one for images too small for them."""
    return Scattering(size, 2 if size >= SMALLEST and size % 4 == 0 else 1)


@torch.no_grad()
def raw_features(images: Tensor, scattering: Scattering) -> Tensor:
    """Normalised scattering (N, d) of images (N, C, size, size) in [-1, 1]; each row has unit length."""
    single = scattering((images.flatten(0, 1) + 1) / 2)
    groups = max(1, single.shape[1] // GROUP)
    if single.shape[1] % groups:
        groups = 1
    return F.normalize(F.group_norm(single, groups).reshape(len(images), -1), dim=1)
