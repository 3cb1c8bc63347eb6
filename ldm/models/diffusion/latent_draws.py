"""`LatentDraws`: the fitted statistics of a private run as one small file, from which latents are drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoint import read_checkpoint, save_safetensors
from ldm.checkpoint.metadata import MADE_FROM, checkpoint_metadata, made_from
from ldm.errors import UserError
from ldm.privacy.statistics import ClassMixture, Frame

TENSORS = ("shares", "weights", "means", "factors", "centre", "lift", "shape")
#: The tensor that only mixtures of groups of cells have.
GROUPS = "groups"


@dataclass(frozen=True, eq=False)  # tensors have no single truth value
class LatentDraws:
    """A mixture in public coordinates, and the way from them to scaled latents of ``shape`` (z, h, w).

    ``centre`` (d,) and ``lift`` (k, d) are those of a `Frame`. Everything here was released with noise, or is public.
    """

    mixture: ClassMixture
    centre: Tensor
    lift: Tensor
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, mixture: ClassMixture, frame: Frame, shape: tuple[int, int, int]) -> LatentDraws:
        """The draws of a mixture in the coordinates of ``frame``."""
        return cls(mixture, frame.centre, frame.lift, shape)

    def draw(self, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Scaled latents (B, z, h, w) float32 for labels (B,). Raises UserError for a label without statistics."""
        self.check_labels(labels)
        rows = self.centre + self.mixture.draw(labels, generator) @ self.lift
        return rows.float().view(len(labels), *self.shape)

    def check_labels(self, labels: Tensor) -> None:
        """Raise UserError for a label without statistics."""
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.mixture.classes:
            raise UserError(f"statistics of {self.mixture.classes} classes were released; choose among their labels")

    def state(self) -> dict[str, Tensor]:
        """The content as named tensors."""
        mixture = self.mixture
        content = (mixture.shares, mixture.weights, mixture.means, mixture.factors, self.centre, self.lift)
        state = dict(zip(TENSORS, (*content, torch.tensor(self.shape)), strict=True))
        return state if mixture.groups is None else {**state, GROUPS: mixture.groups}

    def save(self, path: Path, account: Mapping[str, Any]) -> None:
        """Write ``.safetensors``, atomically, with the privacy ``account`` (plan and ledger) that paid for it."""
        save_safetensors(self.state(), path, {"privacy": json.dumps(account)})

    @classmethod
    def read(cls, path: Path) -> LatentDraws:
        """Read `save` back. Raises UserError for another or a damaged file."""
        state = read_checkpoint(path)["state_dict"]
        groups = state.pop(GROUPS, None)
        if set(state) != set(TENSORS):
            raise UserError(f"{path}: holds no released statistics to draw from")
        *numbers, centre, lift, shape = (state[name] for name in TENSORS)
        shares, weights, means, factors = (tensor.double() for tensor in numbers)
        if groups is not None and not _fits(groups, weights, factors):
            raise UserError(f"{path}: the groups of cells are not those of its cells; the file is damaged")
        return cls(ClassMixture(shares, weights, means, factors, groups), centre, lift, tuple(shape.tolist()))


def _fits(groups: Tensor, weights: Tensor, factors: Tensor) -> bool:
    """Whether every cell (classes, cells) names a factor of its class, in whole numbers."""
    whole = groups.shape == weights.shape and groups.dtype == torch.int64 and groups.numel() > 0
    return whole and 0 <= int(groups.min()) <= int(groups.max()) < factors.shape[1]


def write_half(source: Path, target: Path) -> None:
    """Write the draws in ``source`` with factors, nearly all of the file, in half precision: a quarter of the size.

    The account and the digest that the run's card lists go with them. Raises UserError for factors that half precision
    cannot hold.
    """
    content = read_checkpoint(source)
    factors = content["state_dict"]["factors"].half()
    if not torch.isfinite(factors).all():
        raise UserError(f"{source}: factors have values beyond half precision; write them in full precision")
    metadata = {"privacy": checkpoint_metadata(content, "privacy"), MADE_FROM: made_from(content)}
    written = {name: json.dumps(value) for name, value in metadata.items()}
    save_safetensors({**content["state_dict"], "factors": factors}, target, written)
