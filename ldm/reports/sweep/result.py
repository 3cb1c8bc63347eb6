"""`SweepResult`: the settings that were tried, their scores, and the best, as a file and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldm.files import write_json
from ldm.reports.sweep.grid import Setting

FORMAT = "dp-ldm sweep"
VERSION = 1
RESULT = "sweep.json"


@dataclass(frozen=True)
class Tried:
    """One setting: its run directory, and its mean score (lower is better) with the deviation of the mean.

    ``run`` is "" for a private run that was charged, stopped before its first checkpoint, and not repeated.

    ``behind``: how far its score is behind the best one's, ``noise`` the deviation of that difference over the same
    images; None without scores.
    """

    setting: Setting
    run: str
    score: float | None = None
    deviation: float | None = None
    behind: float | None = None
    noise: float | None = None

    @property
    def level(self) -> bool:
        """Whether it is not behind the best by more than the deviation of the difference."""
        return self.behind is not None and self.noise is not None and self.behind <= self.noise


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep over ``settings`` settings.

    ``mode``: public, composition or selection. ``data`` and ``held_out``: names of the sets. ``statement``: the cost of
    the runs, for the card's line on tuning. ``tried``: all settings, or the winner alone for a selection; ``best``: its
    place among them.
    """

    mode: str
    data: str
    held_out: str
    statement: str
    tried: tuple[Tried, ...]
    best: int | None
    settings: int

    def write(self, folder: Path) -> None:
        """Write ``sweep.json``."""
        content: dict[str, Any] = {"format": FORMAT, "version": VERSION, **asdict(self)}
        write_json(folder / RESULT, content)

    def lines(self) -> list[str]:
        """A table for the terminal: `*` marks the best, `=` those that are level with it."""
        lines = []
        for place, entry in enumerate(self.tried):
            mark = "*" if place == self.best else "=" if entry.level else " "
            score = (
                "lost, and charged"
                if not entry.run
                else "not scored"
                if entry.score is None
                else f"{entry.score:.5f} ± {entry.deviation or 0:.5f}"
            )
            lines.append(f"{mark} {score}   {' '.join(short(setting) for setting in entry.setting)}")
        if any(entry.level for place, entry in enumerate(self.tried) if place != self.best):
            lines.append("= level: not behind the best by more than the deviation of the difference; take the cheapest")
        return lines


def ranked(
    settings: Sequence[Setting], runs: Sequence[str], losses: Mapping[int, NDArray[np.float64]]
) -> tuple[tuple[Tried, ...], int | None]:
    """Every setting with its score, compared image by image with the best, and the place of the best.

    ``losses`` by place: the losses of one model on the held-out images, in the same order for all.
    """
    if not losses:
        return tuple(Tried(setting, run) for setting, run in zip(settings, runs, strict=True)), None
    best = min(losses, key=lambda place: float(losses[place].mean()))
    found = []
    for place, (setting, run) in enumerate(zip(settings, runs, strict=True)):
        if place not in losses:
            found.append(Tried(setting, run))
            continue
        own = losses[place]
        difference = own - losses[best]
        found.append(
            Tried(setting, run, float(own.mean()), _deviation(own), float(difference.mean()), _deviation(difference))
        )
    return tuple(found), best


def _deviation(values: NDArray[np.float64]) -> float:
    """Deviation of the mean."""
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def short(setting: str) -> str:
    """``key=value`` without the key's path."""
    key, _, value = setting.partition("=")
    return f"{key.rpartition('.')[2]}={value}"
