"""A sweep that was stopped goes on: nothing is repeated, nothing is charged twice, and no charge is forgotten."""

from __future__ import annotations

import json
import shutil
import signal
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dp_accounting.dp_event import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant

from ldm.checkpoint import checkpoint_metadata, read_checkpoint
from ldm.commands.table import dispatch
from ldm.errors import Stopped, UserError
from ldm.models.diffusion.private_training import PrivateTraining
from ldm.privacy.card import ReleaseCard
from ldm.privacy.selection import Selection
from ldm.reports.release import release_run
from ldm.reports.release_facts import ReleaseFacts
from ldm.reports.sweep import runs
from ldm.reports.sweep.charges import planned_card
from ldm.reports.sweep.stages import Stage, stage_of
from ldm.training import RunOptions
from ldm.training.run_directory import RunDirectory

RATES = "model.base_learning_rate=0.001,0.01"
NEW = ["sweep", "run.yaml", "--try", RATES, "--out", "out", "--device", "cpu"]
AGAIN = ["sweep", "--resume", "out", "--device", "cpu"]


class Trainer:
    """Stands for `train`: writes the card of the run as if all steps had been taken, and a checkpoint.

    ``stop_at``: number of the call that is stopped before it writes anything.
    """

    def __init__(self, stop_at: int = 0) -> None:
        self.calls: list[RunOptions] = []
        self.stop_at = stop_at

    def __call__(self, options: RunOptions) -> RunDirectory:
        self.calls.append(options)
        if len(self.calls) == self.stop_at:
            raise Stopped(signal.SIGTERM, "stopped by SIGTERM")
        run = RunDirectory(Path(options.logdir) / f"2026-01-01T00-00-00_{options.name}", "")
        run.checkpoints.mkdir(parents=True)
        charged = next((path for path in sorted(Path("out/charges").glob("*.json"))), None)
        assert charged is not None
        planned_card(ReleaseCard.read(charged).plan).write(run.privacy_card)
        (run.checkpoints / "last.ckpt").write_text("whole")
        return run


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Callable[[Trainer], Trainer]:
    """Let a `Trainer` stand for `train`; its checkpoints count as whole."""

    def use(trainer: Trainer) -> Trainer:
        monkeypatch.setattr(runs, "train", trainer)
        monkeypatch.setattr("ldm.reports.sweep.stages.steps_of", lambda path: 2 if path.is_file() else None)
        return trainer

    return use


def stop(words: list[str]) -> None:
    with pytest.raises(Stopped, match="the sweep is stopped; go on with dp-ldm sweep --resume out"):
        dispatch(words)


def charged_epsilon(card: ReleaseCard, steps: int) -> float:
    """Epsilon of ``steps`` steps of a card's plan, by the accountant itself."""
    accountant = PLDAccountant()
    step = PoissonSampledDpEvent(card.plan.sample_rate, GaussianDpEvent(card.plan.noise_multiplier))
    accountant.compose(SelfComposedDpEvent(step, steps))
    return float(accountant.get_epsilon(card.plan.delta))


def test_a_sweep_stopped_within_a_run_goes_on_with_its_ledger(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    undone, taken = PrivateTraining.step, 0

    def step(self: PrivateTraining, model: Any, batch: Mapping[str, Any]) -> None:
        nonlocal taken
        taken += 1
        if taken == 4:  # the second step of the second run
            raise KeyboardInterrupt
        undone(self, model, batch)

    monkeypatch.setattr(PrivateTraining, "step", step)
    before = signal.getsignal(signal.SIGINT)
    try:
        stop([*NEW, "--charge", "composition"])
    finally:
        signal.signal(signal.SIGINT, before)
    first, second = sorted((place / "out" / "runs").iterdir())
    finished = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    assert ReleaseCard.read(second / "privacy.json").ledger.steps == 1
    capsys.readouterr()
    dispatch(AGAIN)
    said = capsys.readouterr().out
    assert "run 1 of 2" in said and "was finished before" in said and "run 2 of 2" in said and "goes on" in said
    assert sorted((place / "out" / "runs").iterdir()) == [first, second]
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == finished
    for run in (first, second):
        card = ReleaseCard.read(run / "privacy.json")
        assert card.ledger.steps == 2 and [other.ledger.steps for other in card.others] == [2]
        exact = charged_epsilon(card, 4)  # two runs of two steps, as if nothing had happened
        assert card.epsilons()["pld"] == pytest.approx(exact, rel=0.01) and 3.9 < exact <= 4.01
    assert read_checkpoint(second / "checkpoints" / "last.ckpt")["global_step"] == 2
    assert checkpoint_metadata(read_checkpoint(second / "checkpoints" / "last.ckpt"), "start_privacy")


def test_a_finished_run_is_not_repeated_and_charges_do_not_change(
    place: Path, trained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    first = trained(Trainer(stop_at=2))
    stop([*NEW, "--charge", "composition"])
    charges = {path.name: path.read_bytes() for path in Path("out/charges").iterdir()}
    with pytest.raises(UserError, match="holds a sweep that was stopped; type dp-ldm sweep --resume out"):
        dispatch([*NEW, "--charge", "composition"])
    second = trained(Trainer())
    dispatch(AGAIN)
    assert [options.name for options in first.calls] == ["01", "02"]
    assert [options.name for options in second.calls] == ["02"]
    assert second.calls[0].dotlist == first.calls[1].dotlist  # the same noise, charged with the same other run
    assert {path.name: path.read_bytes() for path in Path("out/charges").iterdir()} == charges
    assert len(json.loads(Path("out/sweep.json").read_text())["tried"]) == 2
    with pytest.raises(UserError, match="this sweep is finished"):
        dispatch(AGAIN)


def test_a_run_that_was_charged_and_lost_is_not_repeated(
    place: Path, trained: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(Trainer(stop_at=2))
    stop([*NEW, "--charge", "composition"])
    (run,) = Path("out/runs").iterdir()
    shutil.rmtree(run / "checkpoints")  # killed after the card was written, before the checkpoint was
    again = trained(Trainer())
    dispatch(AGAIN)
    said = capsys.readouterr().out
    assert [options.name for options in again.calls] == ["02"]
    (charged,) = [word for word in again.calls[0].dotlist if word.startswith("model.params.dp_config.other_runs=")]
    assert "01.json" in charged  # the lost run stays charged to the other one
    assert "lost, and charged   base_learning_rate=0.001" in said and "next: dp-ldm release out/runs/2026" in said
    assert json.loads(Path("out/sweep.json").read_text())["tried"][0]["run"] == ""


def test_a_run_that_released_nothing_is_repeated(place: Path, trained: Any) -> None:
    trained(Trainer(stop_at=2))
    stop([*NEW, "--charge", "composition"])
    (Path("out/runs") / "2026-01-01T00-00-00_02" / "configs").mkdir(parents=True)
    assert stage_of(Path("out/runs"), 2)[0] is Stage.NEW
    again = trained(Trainer())
    dispatch(AGAIN)
    assert [options.name for options in again.calls] == ["02"]


def test_a_changed_configuration_is_refused(place: Path, trained: Any) -> None:
    trained(Trainer(stop_at=2))
    stop([*NEW, "--charge", "composition"])
    text = (place / "run.yaml").read_text()
    (place / "run.yaml").write_text(text.replace("max_steps: 2", "max_steps: 3"))
    with pytest.raises(UserError, match="has changed since out was started"):
        dispatch(AGAIN)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep", "--resume", "nowhere"], "nowhere: holds no request.json"),
        (["sweep", "run.yaml", "--resume", "out"], "goes on with what was asked for"),
        (["sweep", "--resume", "out", "model.params.x=1"], "goes on with what was asked for"),
        (["sweep", "--try", RATES], "no configuration; type dp-ldm sweep YAML"),
    ],
)
def test_what_cannot_go_on_is_refused(place: Path, words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dispatch([*words, "--device", "cpu"])


class Candidate(Trainer):
    """The same for a selection, whose runs have no charges of their own."""

    def __call__(self, options: RunOptions) -> RunDirectory:
        Path("out/charges").mkdir(exist_ok=True)
        shutil.copy("card.json", "out/charges/01.json")
        return super().__call__(options)


def test_a_selection_goes_on_with_the_runs_that_were_drawn(
    place: Path, trained: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(Trainer())
    dispatch([*NEW, "--charge", "composition"])  # for a plan
    shutil.copy("out/charges/01.json", "card.json")
    shutil.rmtree("out")
    draws = iter([3])  # drawing again would end in StopIteration
    monkeypatch.setattr(Selection, "draw", lambda self, generator: next(draws))
    scores = iter([0.5, 0.2, 0.9])
    monkeypatch.setattr(runs, "_loss", lambda request, run, held_out: np.full(4, next(scores)))
    monkeypatch.setattr(runs, "_held_out", lambda request: None)
    first = trained(Candidate(stop_at=3))
    stop([*NEW, "--charge", "selection", "--held-out", "x.Y"])
    hidden = place / "out" / ".candidates"
    assert stat.S_IMODE(hidden.stat().st_mode) == 0o700
    with pytest.raises(UserError, match="a candidate of a selection"):
        release_run(next(hidden.glob("*_01")), place / "release", ReleaseFacts())
    second = trained(Candidate())
    dispatch(AGAIN)
    assert [options.name for options in second.calls] == ["03"]
    assert not hidden.exists() and "run 3" not in capsys.readouterr().out
    drawn = [options.dotlist[0] for options in (*first.calls[:2], *second.calls)]
    (best,) = json.loads(Path("out/sweep.json").read_text())["tried"]
    assert best["score"] == pytest.approx(0.2) and best["setting"] == [drawn[1]]
    assert ReleaseCard.read(place / "out" / "best" / "privacy.json").private
