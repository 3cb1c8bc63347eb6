"""`TimestepRule`: how often each timestep is drawn in training, and how much its loss counts. Public constants."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ldm.errors import UserError, nearest

Table = Mapping[str, Sequence[float]]
KEYS = ("steps", "values")


class TimestepRule:
    """Draws timesteps and weighs losses by two tables over the timesteps 0..count-1.

    A table is ``{steps: [0, 500, 999], values: [1, 2, 4]}``: positive values at some timesteps, between which the
    logarithm runs linearly, constant beyond the ends. ``weights`` are brought to a mean of 1 under the ``sampling``
    distribution, so that the size of the loss does not change with them; None means equal for all. Such tables may be
    made of the gradient norms of public records by timestep (scripts/gradient_norms.py); those of private records would
    be a query of their own. Raises UserError for a table that is none.
    """

    def __init__(self, count: int, weights: Table | None = None, sampling: Table | None = None):
        self.count = count
        self.chances = None if sampling is None else read_table("timestep_sampling", sampling, count)
        if self.chances is not None:
            self.chances = self.chances / self.chances.sum()
        self.weights = None if weights is None else read_table("timestep_weights", weights, count)
        if self.weights is not None:
            mean = self.weights.mean() if self.chances is None else (self.weights * self.chances).sum()
            self.weights = (self.weights / mean).float()

    def draw(self, rows: int, device: torch.device) -> Tensor:
        """Timesteps (rows,) int64, from torch's global generator."""
        if self.chances is None:
            return torch.randint(0, self.count, (rows,), device=device)
        if not rows:
            return torch.zeros(0, dtype=torch.long, device=device)
        self.chances = self.chances.to(device)
        return torch.multinomial(self.chances, rows, replacement=True)

    def weighted(self, losses: Tensor, timesteps: Tensor) -> Tensor:
        """Losses (B,) of rows at timesteps (B,), each times its timestep's weight."""
        if self.weights is None:
            return losses
        self.weights = self.weights.to(losses.device)
        return losses * self.weights[timesteps]


def read_table(name: str, table: Table, count: int) -> Tensor:
    """The values of a table at all ``count`` timesteps, float64. Raises UserError for one that is damaged."""
    for key in table:
        if key not in KEYS:
            raise UserError(f"{name}.{key} is unknown{nearest(str(key), KEYS)}")
    steps, values = list(table.get("steps", ())), list(table.get("values", ()))
    if not steps or len(steps) != len(values):
        raise UserError(f"{name}: {len(steps)} steps and {len(values)} values; give as many of each, one at least")
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise UserError(f"{name}.steps must rise: {steps}")
    if any(not (isinstance(value, int | float) and 0 < value < math.inf) for value in values):
        raise UserError(f"{name}.values must be positive numbers: {values}")
    return torch.from_numpy(np.exp(np.interp(np.arange(count), steps, np.log(values))))
