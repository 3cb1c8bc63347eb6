"""Vector quantisation with a learned codebook (van den Oord et al. 2017, arXiv 1711.00937, section 3)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.files import require_regular_file

# Largest distance table (positions times codes), which limits memory for a 64x64 latent with 16384 codes.
TABLE_SIZE = 2**24

Quantised = tuple[Tensor, Tensor, tuple[None, None, Tensor]]


class VectorQuantizer2(nn.Module):
    """Replaces the vector at every position by the nearest of `n_e` codes. (B,e_dim,h,w) -> the same shape.

    loss = |sg(q) - z|^2 + beta*|q - sg(z)|^2, means over everything; with `legacy` (the published models' placement)
    beta weighs the codebook's pull towards the latents, without it the latents' commitment to their codes. The
    gradient passes straight through to z.

    `remap` names a .npy file of code numbers in use: indices then count within that list; an unlisted code becomes a
    random listed one ("random"), one extra number ("extra") or the given number. `sane_index_shape` makes indices
    (B,h,w) instead of (B*h*w,), or (B*h*w,1) with `remap`. Raises UserError for a bad `remap` or `unknown_index`.
    """

    used: Tensor  # with `remap`

    def __init__(
        self,
        n_e: int,
        e_dim: int,
        beta: float = 0.25,
        remap: str | os.PathLike[str] | None = None,
        unknown_index: str | int = "random",
        sane_index_shape: bool = False,
        legacy: bool = True,
    ) -> None:
        super().__init__()
        self.n_e = n_e
        self.e_dim = e_dim
        self.beta = beta
        self.legacy = legacy
        self.sane_index_shape = sane_index_shape
        self.embedding = nn.Embedding(n_e, e_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / n_e, 1.0 / n_e)
        self.remap = remap
        self.re_embed = n_e
        if remap is not None:
            self._remap_from(remap, unknown_index)

    def _remap_from(self, path: str | os.PathLike[str], unknown_index: str | int) -> None:
        try:
            require_regular_file(Path(path))
            used = torch.from_numpy(np.load(path)).long()
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"remap: cannot read {path} ({error}); give a .npy file of code numbers") from None
        if used.ndim != 1 or len(used) == 0 or used.min() < 0 or used.max() >= self.n_e:
            raise UserError(f"remap: {path} must be a list of code numbers within 0 to {self.n_e - 1}")
        if unknown_index not in ("random", "extra") and not isinstance(unknown_index, int):
            raise UserError(f"unknown_index: {unknown_index!r} is none of random, extra or a whole number")
        self.register_buffer("used", used)
        extra = unknown_index == "extra"
        self.unknown_index = len(used) if extra else unknown_index
        self.re_embed = len(used) + extra

    def remap_to_used(self, indices: Tensor) -> Tensor:
        """Code numbers (any shape) as numbers within the list of used codes."""
        used = self.used.to(indices.device)
        match = indices[..., None] == used
        place = match.long().argmax(dim=-1)
        unlisted = ~match.any(dim=-1)
        if self.unknown_index == "random":
            return torch.where(unlisted, torch.randint_like(place, self.re_embed), place)
        return place.masked_fill(unlisted, int(self.unknown_index))

    def unmap_to_all(self, indices: Tensor) -> Tensor:
        """The inverse of `remap_to_used`; the extra number becomes the first used code."""
        used = self.used.to(indices.device)
        return used[indices.masked_fill(indices >= len(used), 0)]

    def nearest(self, z: Tensor) -> Tensor:
        """Numbers (B,h,w) of the codes nearest to latents (B,e_dim,h,w), found in float32."""
        flat = z.detach().movedim(1, -1).reshape(-1, self.e_dim).float()
        with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
            codes = self.embedding.weight.float()
            lengths = codes.square().sum(dim=1)
            rows = max(1, TABLE_SIZE // self.n_e)
            # |z - e|^2 without |z|^2, which is the same for every code
            found = [(lengths - 2.0 * part @ codes.t()).argmin(dim=1) for part in flat.split(rows)]
        return torch.cat(found).reshape(z.shape[0], *z.shape[2:])

    def forward(self, z: Tensor) -> Quantised:
        """Quantised latents, loss (scalar) and (None, None, code numbers) of latents (B,e_dim,h,w)."""
        indices = self.nearest(z)
        codes = self.embedding(indices).movedim(-1, 1)
        to_codes = F.mse_loss(z, codes.detach())
        to_latents = F.mse_loss(codes, z.detach())
        loss = to_codes + self.beta * to_latents if self.legacy else self.beta * to_codes + to_latents
        quantised = (z + (codes - z).detach()).contiguous()
        if self.remap is not None:
            indices = self.remap_to_used(indices)
        if not self.sane_index_shape:
            indices = indices.reshape(-1, 1) if self.remap is not None else indices.flatten()
        return quantised, loss, (None, None, indices)

    def get_codebook_entry(self, indices: Tensor, shape: Sequence[int] | None = None) -> Tensor:
        """Codes of numbers: (..., e_dim), or (B,e_dim,h,w) when `shape` is (B,h,w,e_dim)."""
        if self.remap is not None:
            indices = self.unmap_to_all(indices)
        codes = self.embedding(indices)
        return codes if shape is None else codes.reshape(*shape).movedim(-1, 1).contiguous()


VectorQuantizer = VectorQuantizer2
