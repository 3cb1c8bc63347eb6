"""`Frame`: public coordinates for private latents, with a centre and a few directions from public data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.errors import UserError


@dataclass(frozen=True, eq=False)  # tensors have no single truth value
class Frame:
    """Public coordinates of latents: u = (z - centre) @ directions, z = centre + u @ lift (+ nothing else).

    ``centre`` (d,), ``directions`` (d, k), ``lift`` (k, d), float64. All of it comes from public data, because a frame
    fitted to private records would need a privacy budget of its own.
    """

    centre: Tensor
    directions: Tensor
    lift: Tensor

    def __post_init__(self) -> None:
        d, k = self.directions.shape
        if self.centre.shape != (d,) or self.lift.shape != (k, d):
            raise UserError(
                f"a frame of {k} directions in {d} dimensions has a centre {tuple(self.centre.shape)} and a lift "
                f"{tuple(self.lift.shape)}"
            )
        for name in ("centre", "directions", "lift"):
            value = getattr(self, name).detach().cpu().double()
            if not torch.isfinite(value).all():
                raise UserError(f"the {name} of a frame has numbers that are not finite")
            object.__setattr__(self, name, value)

    @property
    def dimensions(self) -> int:
        """Length of a flattened latent."""
        return self.directions.shape[0]

    @property
    def rank(self) -> int:
        """Number of directions."""
        return self.directions.shape[1]

    def project(self, rows: Tensor) -> Tensor:
        """Coordinates (B, k) of flattened latents (B, d)."""
        return (rows.double() - self.centre) @ self.directions

    def restore(self, coordinates: Tensor) -> Tensor:
        """Flattened latents (B, d) with these coordinates (B, k) and no part outside the directions."""
        return self.centre + coordinates.double() @ self.lift

    def digest(self) -> str:
        """SHA-256 of the numbers, in hexadecimal."""
        result = hashlib.sha256()
        for value in (self.centre, self.directions, self.lift):
            result.update(value.contiguous().numpy().tobytes())
        return result.hexdigest()

    @classmethod
    def fit(cls, latents: Tensor, rank: int | None = None, whitening: float = 1.0) -> Frame:
        """The leading principal directions of *public* latents (N, ...); N must exceed the rank.

        ``whitening`` in [0, 1]: 1 gives every direction unit variance, 0 keeps the scale of the latents. Raises
        UserError for a rank or whitening out of range.
        """
        rows = latents.flatten(1).double()
        limit = min(rows.shape[1], len(rows) - 1)
        wanted = limit if rank is None else rank
        if not 1 <= wanted <= limit:
            raise UserError(f"rank {wanted} is outside 1..{limit}, the directions that {len(rows)} public latents have")
        if not 0 <= whitening <= 1:
            raise UserError(f"whitening {whitening} is outside [0, 1]; 1 gives all directions one variance")
        centre = rows.mean(dim=0)
        values, vectors = torch.linalg.eigh(torch.cov(rows.T).reshape(rows.shape[1], rows.shape[1]))
        values, vectors = values.flip(0)[:wanted].clamp(min=1e-12), vectors.flip(1)[:, :wanted]
        scale = values ** (whitening / 2)
        return cls(centre, vectors / scale, (vectors * scale).T.contiguous())

    @classmethod
    def identity(cls, dimensions: int, scale: float = 1.0) -> Frame:
        """The coordinates of the latents themselves, divided by ``scale``."""
        eye = torch.eye(dimensions, dtype=torch.float64)
        return cls(torch.zeros(dimensions, dtype=torch.float64), eye / scale, eye * scale)
