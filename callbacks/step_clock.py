"""Timestamps of a private run, derived from the number of steps and not from their duration."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pytorch_lightning.loggers import TensorBoardLogger
from torch import Tensor

SECONDS_A_STEP = 1.0


class StepClock:
    """A clock that starts with the run and advances one second per step.

    The duration of a private step grows with the size of its Poisson draw, so real times of log entries or files would
    reveal the sizes of the draws. Times of this clock depend on the step number only and increase with it.
    """

    def __init__(self, start: float | None = None):
        self.start = float(int(time.time() if start is None else start))

    def at(self, step: int) -> float:
        """The clock's time at the end of a step, in seconds since 1970."""
        return self.start + SECONDS_A_STEP * step

    def set_file_time(self, path: str | Path, step: int) -> None:
        """Set the modification time of a file written after ``step`` to this clock's time."""
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


def show_image(loggers: Iterable[Any], name: str, image: Image.Image, step: int, clock: StepClock | None) -> None:
    """Add an image to every TensorBoard log, at the time of ``clock`` if there is one (a private run)."""
    pixels = np.asarray(image.convert("RGB"))
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            when = None if clock is None else clock.at(step)
            logger.experiment.add_image(name, pixels, step, walltime=when, dataformats="HWC")


def show_text(loggers: Iterable[Any], name: str, text: str, clock: StepClock | None) -> None:
    """Add a text, such as the configuration, to every TensorBoard log, at step 0."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_text(name, text, 0, walltime=None if clock is None else clock.at(0))
