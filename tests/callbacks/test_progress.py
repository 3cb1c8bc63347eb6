"""What a run shows while it lasts: private steps without times, epochs counted from 1, and lines in a file."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from callbacks.progress import LINES_OF_A_PLAN, ProgressLog, StepProgressBar, epoch_words, step_line
from callbacks.step_clock import StepClock
from ldm.models.diffusion.private_training import PrivateTraining
from ldm.training import train
from tests import tiny
from tests.tiny_runs import public_config, small_checkpoint, small_ldm


def private_config(folder: Path, **trainer: Any) -> dict[str, Any]:
    start = small_checkpoint(folder / "public.ckpt", small_ldm())
    model = small_ldm(ckpt_path=str(start), train_condition_only=True, dp_config=tiny.dp(dataset_size=30))
    return tiny.run_config(model, tiny.write_digits(folder / "digits"), **trainer)


def test_a_private_bar_counts_the_steps_of_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tiny.options(tmp_path, private_config(tmp_path, max_steps=7, enable_progress_bar=True))).path
    shown = capsys.readouterr()
    text = shown.out + shown.err
    assert re.search(r"step 3 of 7 · ε [\d.]+ · under a minute left", text) and "step 7 of 7 · ε " in text
    assert "poch 0" not in text and "-2" not in text and "it/s" not in text and "Epoch" not in text
    lines = (run / "progress.log").read_text().splitlines()
    assert lines[0] == "training starts" and lines[-1] == "training ends after 7 steps" and len(lines) == 9
    assert not any(re.search(r"\d\d:\d\d|min|left", line) for line in lines)


def test_the_estimate_of_a_private_run_does_not_see_its_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    original = PrivateTraining.seconds_a_step

    def seconds(self: PrivateTraining, model: Any) -> float | None:
        before = (self.taken, self.clipper.skipped)
        found = original(self, model)
        asked.append(self.taken)
        assert found is not None and found > 0 and (self.taken, self.clipper.skipped) == before
        assert all(float(value.abs().sum()) == 0 for value in self.clipper.pop_sums().values())
        return found

    monkeypatch.setattr(PrivateTraining, "seconds_a_step", seconds)
    train(tiny.options(tmp_path, private_config(tmp_path, max_steps=3, enable_progress_bar=True)))
    assert asked == [0], "measured once, before the first draw"


def test_the_first_pass_of_the_estimate_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts libraries; on a busy machine a run of minutes was announced as one of hours."""
    took, found = iter([100.0, 0.5]), []
    original = PrivateTraining.seconds_a_step

    def seconds(self: PrivateTraining, model: Any) -> float | None:
        found.append((original(self, model), self.plan.expected_batch_size))
        return found[0][0]

    monkeypatch.setattr(PrivateTraining, "_seconds_of", lambda self, model, rows: next(took))
    monkeypatch.setattr(PrivateTraining, "seconds_a_step", seconds)
    train(tiny.options(tmp_path, private_config(tmp_path, max_steps=1, enable_progress_bar=True)))
    [(estimate, expected)] = found
    records = min(int(expected), 64)
    assert estimate == pytest.approx(0.5 * expected / records)


def test_a_line_of_a_private_run() -> None:
    plan = SimpleNamespace(steps=50, target_epsilon=5.0)
    assert step_line(plan, 7, lambda taken: 0.3 * taken, 12.6) == "step 7 of 50 · ε 2.1 of 5 · about 9 min left"
    assert step_line(plan, 50, lambda taken: 4.99, 12.6) == "step 50 of 50 · ε 4.99 of 5"
    plan = SimpleNamespace(steps=50, target_epsilon=9.994)
    assert step_line(plan, 50, lambda taken: 9.993) == "step 50 of 50 · ε 10 of 10"  # not "ε 10 of 9.99"
    assert step_line(SimpleNamespace(steps=3, target_epsilon=None), 1, lambda taken: 0.5) == "step 1 of 3 · ε 0.5"


def test_a_private_log_has_lines_at_fixed_steps_and_the_times_of_the_clock(tmp_path: Path) -> None:
    plan = SimpleNamespace(steps=10 * LINES_OF_A_PLAN, target_epsilon=None)
    training = SimpleNamespace(plan=plan, taken=0)
    path = tmp_path / "run" / "progress.log"
    log = ProgressLog(path, training, lambda taken: taken / 100, StepClock(1000))
    for step in range(1, 41):
        training.taken = step
        log.on_train_batch_end(SimpleNamespace(global_step=step, is_global_zero=True))
    assert path.read_text().splitlines() == [f"step {step} of 500 · ε {step / 100:.3g}" for step in (10, 20, 30, 40)]
    assert path.stat().st_mtime == 1040
    log.on_train_batch_end(SimpleNamespace(global_step=41, is_global_zero=False))
    assert len(path.read_text().splitlines()) == 4


def test_a_public_run_counts_epochs_from_one_and_logs_with_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(tiny.options(tmp_path, public_config(tmp_path, max_epochs=2, enable_progress_bar=True))).path
    shown = capsys.readouterr()
    assert "epoch 1 of 2" in shown.out + shown.err and "v_num" not in shown.out + shown.err
    lines = (run / "progress.log").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line) for line in lines)
    assert lines[-1].endswith("training ends after 4 steps")
    assert abs(os.stat(run / "progress.log").st_mtime - time.time()) < 600


def test_a_run_without_a_number_of_epochs_names_none() -> None:
    assert epoch_words(SimpleNamespace(current_epoch=4, max_epochs=-1)) == "epoch 5"
    assert epoch_words(SimpleNamespace(current_epoch=0, max_epochs=3)) == "epoch 1 of 3"
    assert StepProgressBar.BAR_FORMAT == "{desc} {bar}", "neither times nor rates"
