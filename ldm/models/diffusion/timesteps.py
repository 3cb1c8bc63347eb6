"""`TimestepRule`: sampling probabilities and loss weights of the timesteps in training, both public constants."""

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

    A table such as ``{steps: [0, 500, 999], values: [1, 2, 4]}`` gives positive values at some timesteps. The logarithm
    is interpolated linearly between them and is constant beyond the ends. ``weights`` are scaled to mean 1 under the
    ``sampling`` distribution, which keeps the scale of the loss; None means equal weights. Tables may be derived from
    gradient norms of public records (scripts/gradient_norms.py); norms of private records would be a query that costs
    privacy. Raises UserError for an invalid table.
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
        """Per-example losses (B,) at timesteps (B,), each multiplied by the weight of its timestep."""
        if self.weights is None:
            return losses
        self.weights = self.weights.to(losses.device)
        return losses * self.weights[timesteps]


def read_table(name: str, table: Table, count: int) -> Tensor:
    """The values of a table at all ``count`` timesteps, float64. Raises UserError for an invalid table."""
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
