"""Times that a private run writes down: they follow from the number of steps, not from how long the steps took."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

SECONDS_A_STEP = 1.0


class StepClock:
    """A clock that starts when the run does and goes on one second a step.

    A step of a private run takes as long as its Poisson draw is large, so a real time beside every step (of an entry in
    a log, of a file) would give the sizes of the draws away. Times of this clock increase with the steps, as those of
    files should, and depend on nothing else.
    """

    def __init__(self, start: float | None = None):
        self.start = float(int(time.time() if start is None else start))

    def at(self, step: int) -> float:
        """Seconds since 1970 that stand for the end of a step."""
        return self.start + SECONDS_A_STEP * step

    def set_file_time(self, path: str | Path, step: int) -> None:
        """Let a file that was written after ``step`` carry this clock's time."""
        os.utime(path, (self.at(step), self.at(step)))


class StepTimedTensorBoard(TensorBoardLogger):
    """Lightning's TensorBoard logger with the times of a `StepClock`; the YAML's ``params`` are those of its base."""

    clock: StepClock | None = None

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if self.clock is None:
            raise RuntimeError("StepTimedTensorBoard.clock is not set")
        when = self.clock.at(step or 0)
        for name, value in metrics.items():
            value = value.item() if isinstance(value, Tensor) else value
            if isinstance(value, dict):
                self.experiment.add_scalars(name, value, step, walltime=when)
            else:
                self.experiment.add_scalar(name, value, step, walltime=when)


class StepProgressBar(TQDMProgressBar):
    """A progress bar that counts steps and shows epsilon, without the time that they took."""

    BAR_FORMAT = "{l_bar}{bar}| {n_fmt}/{total_fmt}{postfix}"
