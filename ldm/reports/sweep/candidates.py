"""The secret part of a selection: the number of its runs, their settings, and the best so far.

It is kept in the hidden folder of the candidates, readable by the owner only, so that a stopped selection can go on: as
many runs with the same settings, of which one is published. The folder is deleted at the end.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ldm.files import read_json, write_json
from ldm.privacy.randomness import secret_generator
from ldm.privacy.selection import Selection
from ldm.reports.release import CANDIDATES

STATE = "state.json"
LARGEST = 2**22  # bytes of the state: a few thousand runs, and the losses of one


@dataclass
class Candidates:
    """The drawn runs: ``settings``, the place of each run's setting in the grid; ``done``, the runs that are scored;
    ``best``, the folder of the best of them in ``folder``, with its ``losses`` on each held-out image."""

    folder: Path
    settings: list[int]
    done: int = 0
    best: str = ""
    losses: list[float] | None = None

    @classmethod
    def of(cls, out: Path, selection: Selection, grid: int) -> Candidates:
        """Those of a stopped selection in ``out``; otherwise newly drawn ones, of ``grid`` settings."""
        folder = out / CANDIDATES
        if (folder / STATE).is_file():
            return cls(folder, **read_json(folder / STATE, LARGEST))
        generator = secret_generator()
        number = selection.draw(generator)
        drawn = cls(folder, [int(generator.integers(grid)) for _ in range(number)])
        folder.mkdir(parents=True, exist_ok=True)
        os.chmod(folder, 0o700)
        drawn.write()
        return drawn

    def write(self) -> None:
        """Keep the state."""
        values = {name: value for name, value in vars(self).items() if name != "folder"}
        write_json(self.folder / STATE, values)

    def score(self, train: Callable[[int, int], Path], loss: Callable[[Path], NDArray[np.float64]]) -> None:
        """Train and score the remaining runs. ``train`` gets a run's number, from 1 on, and its setting's place."""
        while self.done < len(self.settings):
            run = train(self.done + 1, self.settings[self.done])
            found = loss(run)
            if self.losses is None or found.mean() < np.mean(self.losses):
                self.best, self.losses = run.name, found.tolist()
            self.done += 1
            self.write()

    def keep_best(self, place: Path) -> int:
        """Move the best run to ``place``; returns the place of its setting in the grid."""
        number = int(self.best.rpartition("_")[2].partition("-")[0])
        if not place.exists():
            shutil.move(self.folder / self.best, place)
        return self.settings[number - 1]

    def delete(self) -> None:
        """Delete the state and the other runs, which must not be published."""
        shutil.rmtree(self.folder)
