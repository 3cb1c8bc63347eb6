"""Trains and scores the runs of a sweep.

Scores are losses on public held-out images only: a score on private images would be one more release. The loss is the
mean squared error of the predicted noise, over the same timesteps and noises for every run.
"""

from __future__ import annotations

import logging
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from ldm.cli import typed
from ldm.data.part import Part
from ldm.errors import Stopped, UserError
from ldm.evaluation.inputs.sources import open_dataset, parse_settings
from ldm.inference import load_model
from ldm.numbers import rounded_up
from ldm.privacy.selection import Selection
from ldm.reports.budget import PlannedRun
from ldm.reports.membership import LossOptions, image_losses
from ldm.reports.model_files import ModelFiles
from ldm.reports.release import CANDIDATES
from ldm.reports.sweep.candidates import Candidates
from ldm.reports.sweep.charges import compose, private_set, select, total_epsilon
from ldm.reports.sweep.grid import Setting
from ldm.reports.sweep.request import COMPOSITION, PUBLIC, REQUEST, SELECTION, SweepRequest
from ldm.reports.sweep.result import RESULT, SweepResult, ranked
from ldm.reports.sweep.stages import Stage, stage_of
from ldm.training import RunOptions, train

logger = logging.getLogger(__name__)

BASE = "base.yaml"
HELD_OUT = 512
LOSS = LossOptions(draws=8, count=HELD_OUT)


def run_sweep(request: SweepRequest) -> SweepResult:
    """Train every setting, or for a selection a random number of random ones, and write ``sweep.json``.

    Raises UserError, before anything is trained, for requests that are not covered. When a signal stops it, `Stopped`
    names the command that goes on.
    """
    request.check()
    request.check_new()
    return _carried_out(request, None)


def resume_sweep(out: Path, device: torch.device, progress: Callable[[str], None] = logger.info) -> SweepResult:
    """Go on with the sweep in ``out``, which was stopped.

    Finished runs are not repeated, and runs that have a checkpoint go on with their ledgers. A private run that was
    charged and has left no checkpoint is not repeated either, because that would be a second charge; its charge stays
    on every card. Raises UserError for a folder without a stopped sweep, and for a configuration that has changed.
    """
    if (out / RESULT).is_file():
        shutil.rmtree(out / CANDIDATES, ignore_errors=True)  # of a selection that was stopped at its very end
    return _carried_out(*SweepRequest.read(out, device, progress))


def _carried_out(request: SweepRequest, overrides: list[list[str]] | None) -> SweepResult:
    try:
        if request.charge == COMPOSITION:
            result = _composed(request, overrides)
        else:
            result = (_selected if request.charge else _on_public)(request)
    except (Stopped, KeyboardInterrupt) as stopped:
        if not (request.out / REQUEST).is_file():
            raise
        number = stopped.signal if isinstance(stopped, Stopped) else signal.SIGINT
        raise Stopped(number, f"the sweep is stopped; go on with dp-ldm sweep --resume {typed(request.out)}") from None
    result.write(request.out)
    return result


# ---------------------------------------------------------------------- the three modes


def _on_public(request: SweepRequest) -> SweepResult:
    node, full = _node(request, request.public, request.public_args)
    count = PlannedRun.read(request.base, request.settings).num_records
    held = min(HELD_OUT, len(full) // 5) if not request.held_out else 0
    used = min(count, len(full) - held)
    if used < 1:
        raise UserError(f"--public {request.public} has {len(full)} images, too few to train on and to score with")
    if used < count:
        logger.warning("%d public images play the %d private ones: batches are smaller than they will be", used, count)
    train_on = {"target": "ldm.data.part.Part", "params": {"of": node, "count": used}}
    scored = _held_out(request) if request.held_out else Part(full, held, used)
    base = _write_base(request, {"data": {"params": {"train": train_on, "validation": None, "test": None}}})
    request.write()
    runs = [_train(request, base, number, setting) for number, setting in enumerate(request.grid, 1)]
    tried, best = ranked(request.grid, _names(request, runs), _scores(request, runs, scored))
    name = " ".join([request.public, *request.public_args])
    statement = f"{len(request.grid)} settings were tried on public images ({name}), and none on the private ones"
    return SweepResult(PUBLIC, name, request.held_out or name, statement, tried, best, len(request.grid))


def _composed(request: SweepRequest, overrides: list[list[str]] | None) -> SweepResult:
    """Runs that are all kept and charged. ``overrides``: further settings of the runs; None for a new sweep."""
    scored = _held_out(request) if request.held_out else None
    charges = request.out / "charges"
    if overrides is None:
        base = _write_base(request, {})
        overrides = compose(base, [(*request.settings, *setting) for setting in request.grid], charges)
        request.write(overrides)
    base = request.out / BASE
    request.progress(f"{len(request.grid)} runs together cost epsilon {rounded_up(total_epsilon(charges, base))}")
    runs = []
    for number, (setting, more) in enumerate(zip(request.grid, overrides, strict=True), 1):
        runs.append(_train(request, base, number, setting, more))
    losses = _scores(request, runs, scored) if scored is not None else {}
    tried, best = ranked(request.grid, _names(request, runs), losses)
    statement = (
        f"{len(request.grid)} settings were tried on the private images; the stated epsilon charges all of these runs"
    )
    return SweepResult(COMPOSITION, "the private images", request.held_out, statement, tried, best, len(request.grid))


def _selected(request: SweepRequest) -> SweepResult:
    """The best of a random number of runs; the other runs are deleted."""
    scored = _held_out(request)
    selection = Selection.with_mean(request.expected_runs or 2.0 * len(request.grid), request.eta)
    base = _write_base(request, {})
    words = select(base, [(*request.settings, *setting) for setting in request.grid], selection)
    request.write()
    request.progress(f"{selection.describe()}: neither the number nor the other runs may be published")
    candidates = Candidates.of(request.out, selection, len(request.grid))

    def train_one(number: int, place: int) -> Path:
        run = _train(request, base, number, request.grid[place], words, candidates.folder)
        assert (
            run is not None
        )  # a lost candidate is repeated, so that the best is chosen among as many runs as were drawn
        return run

    candidates.score(train_one, lambda run: _loss(request, run, scored))
    kept, losses = request.out / "best", np.asarray(candidates.losses)
    tried, best = ranked([request.grid[candidates.keep_best(kept)]], [kept.name], {0: losses})
    statement = f"{len(request.grid)} settings were tried on the private images; {selection.describe()}"
    count = len(request.grid)
    result = SweepResult(SELECTION, "the private images", request.held_out, statement, tried, best, count)
    result.write(request.out)  # before the state is gone, without which a stopped sweep would draw new runs
    candidates.delete()
    return result


# ---------------------------------------------------------------------- training and scoring


def _write_base(request: SweepRequest, changes: dict[str, Any]) -> Path:
    """Write the configuration of all runs; a stopped sweep has its folder already."""
    path = request.out / BASE
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"base": str(request.base.resolve()), **changes}, sort_keys=False))
    return path


def _train(
    request: SweepRequest,
    base: Path,
    number: int,
    setting: Setting,
    more: Sequence[str] = (),
    secret: Path | None = None,
) -> Path | None:
    """Train a run, or resume it; None for one that was charged and must not be repeated.

    ``secret``: folder of a selection, whose number of runs is not shown.
    """
    folder = secret or request.out / "runs"
    stage, found = stage_of(folder, number)
    say = request.progress if secret is None else logger.debug
    title = f"run {number} of {len(request.grid)}: {' '.join(setting)}"
    if stage is Stage.FINISHED:
        say(f"{title}: was finished before")
        return found
    if stage is Stage.LOST and request.charge == COMPOSITION:
        say(f"{title}: was charged, and left no checkpoint; it is not repeated, because that would be charged again")
        return None
    given: dict[str, Any] = {"train": True, "no_test": True}
    if stage is Stage.UNFINISHED:
        say(f"{title}: goes on")
        train(RunOptions(base=[], resume=str(found), **given))
        return found
    if found is not None:
        shutil.rmtree(found)  # nothing was released, or nothing of it is published
    say(title)
    words = [*request.settings, *setting, *more]
    return train(RunOptions(base=[str(base)], name=f"{number:02d}", logdir=str(folder), dotlist=words, **given)).path


def _loss(request: SweepRequest, run: Path, held_out: Any) -> NDArray[np.float64]:
    files = ModelFiles.find(run)
    return image_losses(load_model(files.config, files.weights, request.device), held_out, LOSS, "scoring")


def _scores(request: SweepRequest, runs: Sequence[Path | None], held_out: Any) -> dict[int, NDArray[np.float64]]:
    return {place: _loss(request, run, held_out) for place, run in enumerate(runs) if run is not None}


def _names(request: SweepRequest, runs: Sequence[Path | None]) -> list[str]:
    return ["" if run is None else run.relative_to(request.out).as_posix() for run in runs]


def _node(request: SweepRequest, name: str, words: Sequence[str]) -> tuple[dict[str, Any], Any]:
    """The configuration node of a public data set, and the set; a folder gets size and channels of the private one."""
    if Path(name).is_dir():
        params = private_set(request.base).get("params") or {}
        given = {key: params[key] for key in ("size", "channels") if key in params}
        target, arguments = "ldm.data.folder.ImageFolder", {**given, **parse_settings(words)}
        arguments["root"] = str(Path(name).resolve())
    else:
        target, arguments = name, parse_settings(words)
    return {"target": target, "params": arguments}, open_dataset(target, arguments)


def _held_out(request: SweepRequest) -> Any:
    return _node(request, request.held_out, request.held_out_args)[1]
