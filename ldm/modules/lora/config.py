"""Configuration of adapters: rank, scaling, initialization, targets, and rank schedules over the network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from ldm.errors import UserError, nearest

INITS = ("gaussian", "kaiming")
SCALINGS = ("standard", "rslora")
SCHEDULES = ("layer-wise",)
SHAPES = ("linear", "cosine")


@dataclass(frozen=True)
class RankSchedule:
    """Ranks that go from ``initial_rank`` at the first adapted layer to ``final_rank`` at the last one.

    ``linear``: a + (b - a) i / (n - 1). ``cosine``: b + (a - b) (1 + cos(pi i / (n - 1))) / 2. Rounded, at least 1.
    Raises UserError for unknown names and ranks below 1.
    """

    name: str = "layer-wise"
    initial_rank: int = 16
    final_rank: int = 4
    schedule_type: str = "linear"

    def __post_init__(self) -> None:
        _choice("model_lora_rank_schedule.name", self.name, SCHEDULES)
        _choice("model_lora_rank_schedule.schedule_type", self.schedule_type, SHAPES)
        _rank("model_lora_rank_schedule.initial_rank", self.initial_rank)
        _rank("model_lora_rank_schedule.final_rank", self.final_rank)

    @classmethod
    def read(cls, section: Mapping[str, Any]) -> RankSchedule:
        """The schedule of a configuration section. Raises UserError for unknown keys."""
        known = [field.name for field in fields(cls)]
        for key in section:
            if key not in known:
                raise UserError(f"model_lora_rank_schedule.{key}: is unknown{nearest(str(key), known)}")
        return cls(**section)

    def ranks(self, count: int) -> list[int]:
        """The rank of each of ``count`` layers, in network order."""
        first, last = self.initial_rank, self.final_rank
        if count == 1:
            return [first]
        ways = [i / (count - 1) for i in range(count)]
        if self.schedule_type == "linear":
            exact = [first + (last - first) * way for way in ways]
        else:
            exact = [last + 0.5 * (first - last) * (1 + math.cos(math.pi * way)) for way in ways]
        return [max(1, round(rank)) for rank in exact]


@dataclass(frozen=True)
class LoRAConfig:
    """Adapters W x + s B A x (Hu et al. 2021, arXiv 2106.09685) on the layers whose dotted names end in a target.

    ``rank`` r is the inner width. s is alpha / r (``standard``) or alpha / sqrt(r) (``rslora``, Kalajdzievski 2023,
    arXiv 2312.03732); ``alpha`` None means r, so that the standard scaling is 1 at every rank. A starts from N(0,
    1/r^2) (``gaussian``) or from the default of a linear layer (``kaiming``), B from 0. With a ``schedule`` every layer
    has its own r in these formulas. Raises UserError for values out of range.
    """

    targets: tuple[str, ...] = ()
    rank: int = 8
    alpha: float | None = None
    init: str = "gaussian"
    scaling: str = "standard"
    schedule: RankSchedule | None = None

    def __post_init__(self) -> None:
        _rank("the LoRA rank", self.rank)
        _choice("the LoRA init", self.init, INITS)
        _choice("the LoRA scaling", self.scaling, SCALINGS)
        if self.alpha is not None and not (math.isfinite(self.alpha) and self.alpha > 0):
            raise UserError(f"the LoRA alpha is {self.alpha}; give a number above 0, or leave it out to use the rank")

    def scale(self, rank: int) -> float:
        """The factor s in front of B A."""
        alpha = rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(rank) if self.scaling == "rslora" else rank)

    def ranks(self, count: int) -> list[int]:
        """The rank of each of ``count`` adapted layers, in network order."""
        return [self.rank] * count if self.schedule is None else self.schedule.ranks(count)


def _choice(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"{what}: {value!r} is unknown; choose one of {', '.join(known)}{nearest(str(value), known)}")


def _rank(what: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{what} is {value!r}; give a whole number of at least 1, e.g. 8")
