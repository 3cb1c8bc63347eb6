"""Private runs that end early: whatever stops them, the ledger goes on where it was and forgets no released step."""

from __future__ import annotations

import copy
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ldm.checkpoint import io as checkpoint_files
from ldm.checkpoint import read_checkpoint, save_checkpoint
from ldm.errors import Stopped, UserError
from ldm.models.diffusion.private_training import PrivateTraining
from ldm.privacy.ledger import Ledger
from ldm.training import private_run, train
from ldm.training.run_directory import RunDirectory
from tests import tiny

ROOT = Path(__file__).parents[2]
STEPS = 8  # two epochs of four draws


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with digits, a public checkpoint and a cache of its own."""
    folder = tmp_path_factory.mktemp("resume")
    tiny.write_digits(folder / "digits")
    tiny.public_checkpoint(folder / "public.ckpt", "attention")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the running epsilon of the progress bar, half of the time of a run as short as these."""
    monkeypatch.setattr(private_run, "EpsilonMeter", lambda plan: lambda steps: 0.0)


def config_of(place: Path, dp: Mapping[str, Any] | None = None, **trainer: Any) -> dict[str, Any]:
    """Two epochs with an insecure seed, every epoch's checkpoint kept; weights can then be compared bit by bit."""
    given = tiny.dp(**{"insecure_seed": 11, **(dp or {})})
    model = tiny.ldm("attention", ckpt_path=str(place / "public.ckpt"), train_attention_only=True, dp_config=given)
    model["params"]["scheduler_config"] = {
        "target": "ldm.lr_scheduler.LambdaLinearScheduler",
        "params": {"warm_up_steps": [2], "cycle_lengths": [8], "f_start": [0.1], "f_max": [1.0], "f_min": [0.1]},
    }
    config = tiny.run_config(model, place / "digits", **{"max_epochs": 2, **trainer})
    config["lightning"]["modelcheckpoint"] = {"params": {"save_top_k": -1}}
    return config


def start(place: Path, name: str, dp: Mapping[str, Any] | None = None) -> RunDirectory:
    return train(tiny.options(place / name, config_of(place, dp)))


def resume(path: Path, *dotlist: str, **changes: Any) -> RunDirectory:
    """What ``main.py --resume PATH -t`` does."""
    return train(
        tiny.RunOptions(base=[], resume=str(path), train=True, scale_lr=False, dotlist=list(dotlist), **changes)
    )


def run_folder(place: Path, name: str) -> Path:
    (folder,) = (place / name / "logs").iterdir()
    return folder


def card_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "privacy.json").read_text())


def ledger_of(folder: Path, name: str = "last.ckpt") -> Ledger:
    return Ledger.from_dict(read_checkpoint(folder / "checkpoints" / name)["privacy"]["ledger"])


class Stop(Exception):
    """Not a mistake of the user: what a full disk or a lost GPU looks like."""


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Have something happen when a step begins that follows on ``taken`` steps of this process."""
    undone = PrivateTraining.step

    def arrange(taken: int, happening: Callable[[], None]) -> None:
        count = 0

        def step(self: PrivateTraining, model: Any, batch: Mapping[str, Any]) -> None:
            nonlocal count
            if count == taken:
                happening()
            count += 1
            undone(self, model, batch)

        monkeypatch.setattr(PrivateTraining, "step", step)

    return arrange


def fail() -> None:
    raise Stop("the machine is gone")


@pytest.fixture(scope="module")
def undisturbed(place: Path) -> Path:
    return start(place, "undisturbed").path


def assert_same_end(folder: Path, other: Path) -> None:
    """Weights, averages, optimizer, rate and ledger of two finished runs, bit by bit."""
    one, two = (read_checkpoint(path / "checkpoints" / "last.ckpt") for path in (folder, other))
    assert one["global_step"] == two["global_step"] == STEPS
    for name, value in one["state_dict"].items():
        assert torch.equal(value, two["state_dict"][name]), name
    assert one["lr_schedulers"][0]["last_epoch"] == two["lr_schedulers"][0]["last_epoch"] == STEPS
    for mine, theirs in zip(
        one["optimizer_states"][0]["state"].values(), two["optimizer_states"][0]["state"].values(), strict=True
    ):
        assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert one["privacy"]["plan"] == two["privacy"]["plan"]
    assert ledger_of(folder).events == ledger_of(other).events
    assert card_of(folder)["epsilon"] == card_of(other)["epsilon"]
    assert card_of(folder)["steps"] == card_of(other)["steps"] == {"taken": STEPS, "planned": STEPS}


# ---------------------------------------------------------------------- stop and go on


@pytest.mark.parametrize("taken", [1, 5])
def test_a_run_that_failed_after_any_step_goes_on_as_if_nothing_had_happened(
    taken: int, place: Path, undisturbed: Path, at_step: Any
) -> None:
    at_step(taken, fail)
    with pytest.raises(Stop):
        start(place, f"failed{taken}")
    folder = run_folder(place, f"failed{taken}")
    rescued = folder / "checkpoints" / "on_exception.ckpt"
    assert ledger_of(folder, "on_exception.ckpt").steps == taken == card_of(folder)["steps"]["taken"]
    at_step(-1, fail)
    assert resume(rescued).path == folder
    assert_same_end(folder, undisturbed)


def test_a_finished_run_has_nothing_left_to_do(
    place: Path, undisturbed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = copy.deepcopy(read_checkpoint(undisturbed / "checkpoints" / "last.ckpt")["state_dict"])
    resume(undisturbed)
    assert ledger_of(undisturbed).steps == STEPS == card_of(undisturbed)["steps"]["taken"]
    after = read_checkpoint(undisturbed / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_signal_saves_between_two_steps_and_the_run_goes_on(place: Path, undisturbed: Path, at_step: Any) -> None:
    at_step(2, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    folder = start(place, "signal").path
    saved = read_checkpoint(folder / "checkpoints" / "on_signal.ckpt")
    # the step in which the signal came is complete: weights, average, rate and ledger
    assert saved["global_step"] == saved["privacy"]["ledger"]["steps"] == 3
    assert int(saved["state_dict"]["model_ema.num_updates"]) == 3
    assert saved["lr_schedulers"][0]["last_epoch"] == 3
    assert_same_end(folder, undisturbed)


def test_ctrl_c_saves_last(place: Path, undisturbed: Path, at_step: Any) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    at_step(3, interrupt)
    try:
        with pytest.raises(Stopped, match="to go on, type: dp-ldm train --resume .*") as stopped:
            start(place, "interrupted")
    finally:
        signal.signal(signal.SIGINT, before)
    assert stopped.value.signal == signal.SIGINT
    folder = run_folder(place, "interrupted")
    assert ledger_of(folder).steps == 3
    at_step(-1, fail)
    resume(folder)
    assert_same_end(folder, undisturbed)


def test_sigterm_ends_the_run_after_the_step_and_it_goes_on(place: Path, undisturbed: Path, at_step: Any) -> None:
    at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Stopped) as stopped:
        start(place, "terminated")
    folder = run_folder(place, "terminated")
    assert stopped.value.signal == signal.SIGTERM and ledger_of(folder).steps == 3
    at_step(-1, fail)
    resume(folder)
    assert_same_end(folder, undisturbed)


# ---------------------------------------------------------------------- older checkpoints, lost files


def test_an_older_checkpoint_is_charged_with_what_was_released_since(
    place: Path, at_step: Any, caplog: pytest.LogCaptureFixture
) -> None:
    at_step(6, fail)
    with pytest.raises(Stop):
        start(place, "older")
    folder = run_folder(place, "older")
    at_step(-1, fail)
    with caplog.at_level(logging.INFO):
        resume(folder / "checkpoints" / "epoch=000000.ckpt")
    assert "6 of 8 steps are in the ledger" in caplog.text
    stored = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert stored["global_step"] == 4 + 2  # the four of the checkpoint, and what the budget still had
    assert ledger_of(folder).steps == STEPS == card_of(folder)["steps"]["taken"]
    assert "last-v1.ckpt" not in {path.name for path in (folder / "checkpoints").iterdir()}
    # and with the budget spent, no checkpoint gives another step
    resume(folder / "checkpoints" / "epoch=000000.ckpt")
    assert card_of(folder)["steps"]["taken"] == STEPS


def test_a_lost_card_is_said(place: Path, at_step: Any, caplog: pytest.LogCaptureFixture) -> None:
    at_step(6, fail)
    with pytest.raises(Stop):
        start(place, "lost")
    folder = run_folder(place, "lost")
    (folder / "privacy.json").unlink()
    at_step(0, fail)
    with caplog.at_level(logging.WARNING), pytest.raises(Stop):
        resume(folder)
    assert "privacy.json is missing: steps released after" in caplog.text
    (exception,) = card_of(folder)["not_covered"]
    assert exception.startswith("steps after step 6 that were released before the run was resumed")
    at_step(-1, fail)
    resume(folder)  # finds the new card
    card = card_of(folder)
    assert card["not_covered"] == [exception]
    assert card["private"] is False and card["steps"]["taken"] == STEPS


def test_what_a_run_has_said_is_not_covered_stays_said(place: Path, at_step: Any) -> None:
    at_step(3, fail)
    with pytest.raises(Stop):
        start(place, "said")
    folder = run_folder(place, "said")
    card = card_of(folder)
    card["not_covered"] = ["an image of a record was published"]
    (folder / "privacy.json").write_text(json.dumps(card))
    at_step(-1, fail)
    resume(folder / "checkpoints" / "on_exception.ckpt")
    assert card_of(folder)["not_covered"] == ["an image of a record was published"]
    assert card_of(folder)["private"] is False and card_of(folder)["steps"]["taken"] == STEPS


def test_weights_that_are_saved_alone_are_charged_too(place: Path) -> None:
    config = config_of(place, max_epochs=1)
    config["lightning"]["callbacks"]["weights"] = {
        "target": "pytorch_lightning.callbacks.ModelCheckpoint",
        "params": {
            "dirpath": str(place / "weights"),
            "every_n_train_steps": 1,
            "save_top_k": -1,
            "save_weights_only": True,
        },
    }
    train(tiny.options(place / "weights_only", config))
    ledgers = sorted(read_checkpoint(path)["privacy"]["ledger"]["steps"] for path in (place / "weights").iterdir())
    assert ledgers == [1, 2, 3, 4]


# ---------------------------------------------------------------------- refusals


def test_a_checkpoint_without_a_ledger_is_refused(place: Path, undisturbed: Path) -> None:
    folder = place / "bare"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "configs").symlink_to(undisturbed / "configs")
    content = dict(read_checkpoint(undisturbed / "checkpoints" / "epoch=000000.ckpt"))
    del content["privacy"]
    save_checkpoint(content, folder / "checkpoints" / "last.ckpt")
    with pytest.raises(UserError, match="carries no privacy ledger"):
        resume(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.params.dp_config.delta=1e-4"], "dp_config.delta: the resumed run has 0.001, the config says 0.0001"),
        (["model.params.dp_config.max_grad_norm=0.2"], "dp_config.max_grad_norm: the resumed run has 0.1"),
        (["model.params.dp_config.noise_multiplier=0.5"], "dp_config.noise_multiplier: the resumed run has 1.0"),
        (["model.params.dp_config.noise_multiplicity=4"], "dp_config.noise_multiplicity: the resumed run has 1"),
        (["model.params.dp_config.sample_rate=0.5"], "dp_config.sample_rate: the resumed run has 0.25"),
        (["model.params.dp_config.clipping=automatic"], "dp_config.clipping: the resumed run has flat"),
        (
            ["model.params.dp_config.noise_multiplier=null", "model.params.dp_config.epsilon=100"],
            "dp_config.epsilon: the resumed run has None, the config says 100",
        ),
        (
            ["model.params.train_attention_only=false", "model.params.train_resblocks_only=true"],
            "the resumed run trains 42 tensors, the config now selects",
        ),
        (["data.params.batch_size=12"], "batch_size: the resumed run has 6, the config says 12"),
        (["lightning.trainer.max_epochs=3"], "calibrated for 8 steps, max_epochs or max_steps now ask for 12"),
        (["lightning.trainer.max_steps=100"], "calibrated for 8 steps, max_epochs or max_steps now ask for 100"),
    ],
)
def test_a_resumed_run_keeps_its_plan(changes: list[str], message: str, undisturbed: Path) -> None:
    before = card_of(undisturbed)
    with pytest.raises(UserError, match=message) as error:
        resume(undisturbed, *changes)
    assert "\n" not in str(error.value)
    assert card_of(undisturbed) == before


def test_the_target_of_a_calibrated_run_cannot_be_changed(place: Path, at_step: Any) -> None:
    at_step(1, fail)
    with pytest.raises(Stop):
        start(place, "calibrated", {"noise_multiplier": None, "epsilon": 2.0})
    rescued = run_folder(place, "calibrated") / "checkpoints" / "on_exception.ckpt"
    with pytest.raises(UserError, match="dp_config.epsilon: the resumed run has 2.0, the config says 8"):
        resume(rescued, "model.params.dp_config.epsilon=8")


# ---------------------------------------------------------------------- kill -9


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def in_a_process(action: Callable[[], Any]) -> int | None:
    """Run something in a child process and return its exit code; -9 when it was killed."""
    child = multiprocessing.get_context("fork").Process(target=action)
    child.start()
    child.join()
    return child.exitcode


def readable(folder: Path) -> list[Path]:
    """Every checkpoint under its final name; reading each of them must not fail."""
    found = [path for path in (folder / "checkpoints").iterdir() if not path.name.startswith(".")]
    for path in found:
        assert read_checkpoint(path)["privacy"]["ledger"]["steps"] <= card_of(folder)["steps"]["taken"]
    return found


def test_a_run_that_is_killed_twice_ends_with_a_whole_ledger(
    place: Path, undisturbed: Path, at_step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0

    def half_written(path: Path) -> None:
        """Die at the second checkpoint, that of the second epoch, with half a file under a passing name."""
        nonlocal written
        written += 1
        if written == 2:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            die()

    with monkeypatch.context() as patch:
        save = checkpoint_files.torch.save
        patch.setattr(checkpoint_files.torch, "save", lambda content, path: (save(content, path), half_written(path)))
        assert in_a_process(lambda: start(place, "killed")) == -signal.SIGKILL
    folder = run_folder(place, "killed")
    assert {path.name for path in readable(folder)} == {"epoch=000000.ckpt", "last.ckpt"}
    assert list((folder / "checkpoints").glob(".*.tmp.ckpt")), "the half of a file"
    assert ledger_of(folder).steps == 4  # that of the first epoch
    assert card_of(folder)["steps"]["taken"] == STEPS  # charged before the files of the second epoch were written

    # so the weights of the whole run are out, and resuming from last.ckpt has no budget left
    assert in_a_process(lambda: resume(folder)) == 0
    assert card_of(folder)["steps"]["taken"] == STEPS
    readable(folder)
    assert not list((folder / "checkpoints").glob(".*")), "what the killed run left is gone"


def test_steps_that_were_never_released_are_taken_again(place: Path, undisturbed: Path, at_step: Any) -> None:
    at_step(6, die)
    assert in_a_process(lambda: start(place, "again")) == -signal.SIGKILL
    folder = run_folder(place, "again")
    assert ledger_of(folder).steps == card_of(folder)["steps"]["taken"] == 4
    at_step(1, die)
    assert in_a_process(lambda: resume(folder)) == -signal.SIGKILL
    assert card_of(folder)["steps"]["taken"] == 4
    at_step(-1, die)
    assert in_a_process(lambda: resume(folder)) == 0
    assert_same_end(folder, undisturbed)
    assert {path.name for path in readable(folder)} == {"epoch=000000.ckpt", "epoch=000001.ckpt", "last.ckpt"}


@pytest.mark.slow
def test_a_run_that_is_killed_ten_times_at_any_moment_ends_with_a_whole_ledger(place: Path) -> None:
    """The real command, killed by the clock; what it wrote is read each time."""
    steps = 40
    config = config_of(place, {"insecure_seed": None}, max_epochs=10)
    options = tiny.options(place / "ten", config)
    words = [sys.executable, str(ROOT / "main.py"), "-t", "--scale_lr", "False", "-l", options.logdir]
    generator = torch.Generator().manual_seed(0)
    where = ["--base", options.base[0]]
    charged = 0
    for attempt in range(11):
        process = subprocess.Popen([*words, *where], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        folders = list(Path(options.logdir).glob("*/checkpoints/last.ckpt"))
        if attempt < 10:
            while (
                process.poll() is None and list(Path(options.logdir).glob("*/checkpoints/last.ckpt")) == folders == []
            ):
                time.sleep(0.1)
            time.sleep(float(torch.rand((), generator=generator)) * 20)
            process.kill()
        process.wait()
        folder = next(iter(Path(options.logdir).iterdir()))
        where = ["--resume", str(folder)]
        readable(folder)
        taken = card_of(folder)["steps"]["taken"]
        assert charged <= taken <= steps
        charged = taken
    assert process.returncode == 0
    assert charged == steps <= ledger_of(folder).steps
    assert yaml.safe_load((place / "ten" / "run.yaml").read_text()) == config
