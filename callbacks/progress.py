"""Progress of a run for people: one bar in the terminal, and the same lines in a file of the run directory.

A private run shows no time that its draws influence. Its estimate of the remaining time comes from made-up records
(`PrivateTraining.seconds_a_step`), and its log has no times at all.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, TQDMProgressBar
from pytorch_lightning.callbacks.progress.tqdm_progress import Tqdm

from callbacks.step_clock import StepClock
from ldm.numbers import rounded_up, time_left

if TYPE_CHECKING:
    from ldm.models.diffusion.private_training import PrivateTraining
    from ldm.privacy.meter import EpsilonMeter
    from ldm.privacy.plan import PrivacyPlan

#: A private run writes about this many lines of progress, a public one a line in so many seconds.
LINES_OF_A_PLAN = 50
SECONDS_BETWEEN_LINES = 30.0


class StepProgressBar(TQDMProgressBar):
    """The bar of a private run: "step 7 of 50 · ε 2.1 of 5 · about 9 min left", over all epochs and resumed steps.

    ``training`` is the run's `PrivateTraining`, ``meter`` its `EpsilonMeter`.
    """

    BAR_FORMAT = "{desc} {bar}"

    def __init__(self, training: PrivateTraining, meter: EpsilonMeter) -> None:
        super().__init__()
        self.training = training
        self.meter = meter
        self.seconds: float | None = None

    def init_train_tqdm(self) -> Tqdm:
        bar = super().init_train_tqdm()
        bar.total = self.training.plan.steps
        return bar

    def on_train_start(self, *arguments: Any) -> None:
        super().on_train_start(*arguments)
        if self.is_enabled:
            self.seconds = self.training.seconds_a_step(arguments[1])
        self.show()

    def on_train_epoch_start(self, *_: Any) -> None:
        """The bar counts steps of the whole run, so an epoch starts nothing."""

    def on_train_batch_end(self, *_: Any) -> None:
        self.show()

    def on_train_epoch_end(self, *_: Any) -> None:
        """Nothing to show: metrics of an epoch are those of its last step."""

    def show(self) -> None:
        """Bring the bar to the steps in the ledger; all that it shows depends on the plan and on made-up records."""
        if self.is_disabled:
            return
        taken = self.training.taken
        self.train_progress_bar.n = taken
        self.train_progress_bar.set_description_str(step_line(self.training.plan, taken, self.meter, self.seconds))


class EpochProgressBar(TQDMProgressBar):
    """The bar of a run without privacy, with epochs counted from 1 and their number only where there is one."""

    def on_train_epoch_start(self, trainer: pl.Trainer, *rest: Any) -> None:
        super().on_train_epoch_start(trainer, *rest)
        self.train_progress_bar.set_description(epoch_words(trainer))

    def get_metrics(self, *arguments: Any) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(*arguments).items() if name != "v_num"}


class ProgressLog(Callback):
    """Writes progress to ``progress.log`` of the run directory, appending to that of earlier starts.

    With ``training`` and ``meter`` (a private run) the lines have no times, come after fixed numbers of steps, and the
    file has the times of ``clock``.
    """

    def __init__(
        self,
        path: Path,
        training: PrivateTraining | None = None,
        meter: EpsilonMeter | None = None,
        clock: StepClock | None = None,
    ) -> None:
        self.path = path
        self.training = training
        self.meter = meter
        self.clock = clock
        self._written = float("-inf")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write(trainer, "training starts" if trainer.global_step == 0 else f"goes on after {trainer.global_step}")

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.training is not None and self.meter is not None:
            plan, taken = self.training.plan, self.training.taken
            if taken % -(-plan.steps // LINES_OF_A_PLAN) == 0 or taken == plan.steps:
                self._write(trainer, step_line(plan, taken, self.meter))
        elif time.monotonic() - self._written >= SECONDS_BETWEEN_LINES:
            self._written = time.monotonic()
            self._write(trainer, f"{epoch_words(trainer)}, {trainer.global_step} steps")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._write(trainer, f"training ends after {trainer.global_step} steps")

    def _write(self, trainer: pl.Trainer, line: str) -> None:
        if not trainer.is_global_zero:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        stamp = "" if self.training is not None else time.strftime("%Y-%m-%d %H:%M:%S ")
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(f"{stamp}{line}\n")
        if self.clock is not None:
            self.clock.set_file_time(self.path, trainer.global_step)


def step_line(plan: PrivacyPlan, taken: int, meter: EpsilonMeter, seconds: float | None = None) -> str:
    """Steps, epsilon and the time that is left at ``seconds`` a step (None: unknown)."""
    target = f" of {rounded_up(plan.target_epsilon, 3)}" if plan.target_epsilon is not None else ""
    parts = [f"step {taken} of {plan.steps}", f"ε {rounded_up(meter(taken), 3)}{target}"]
    if seconds is not None and taken < plan.steps:
        parts.append(time_left(seconds * (plan.steps - taken)))
    return " · ".join(parts)


def epoch_words(trainer: pl.Trainer) -> str:
    """The current epoch, counted from 1, and the number of epochs if the run has one."""
    most = trainer.max_epochs
    return f"epoch {trainer.current_epoch + 1}" + (f" of {most}" if most is not None and most > 0 else "")
