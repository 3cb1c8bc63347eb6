"""Trains and scores the runs of a sweep.

Scores are losses on public held-out images only: a score on private images would be one more release. The loss is the
mean squared error of the predicted noise, over the same timesteps and noises for every run.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from ldm.data.part import Part
from ldm.errors import UserError
from ldm.evaluation.inputs.sources import open_dataset, parse_settings
from ldm.inference import load_model
from ldm.privacy.randomness import secret_generator
from ldm.privacy.selection import Selection
from ldm.reports.membership import LossOptions, image_losses
from ldm.reports.model_files import ModelFiles
from ldm.reports.sweep.charges import compose, private_set, select, total_epsilon
from ldm.reports.sweep.grid import Setting
from ldm.reports.sweep.result import SweepResult, Tried, ranked
from ldm.training import RunOptions, train

logger = logging.getLogger(__name__)

PUBLIC, COMPOSITION, SELECTION = "public", "composition", "selection"
HELD_OUT = 512
LOSS = LossOptions(draws=8, count=HELD_OUT)


@dataclass(frozen=True)
class SweepRequest:
    """What to try on which images.

    ``base``: configuration of the private run, ``settings``: overrides of all runs. ``public``: a data set class or a
    folder that plays the private one, or "" to train on the private images, which ``charge`` then says how to pay for.
    ``held_out``: public images that score the runs; for ``public`` a part of it without a name. ``out``: a new folder.
    """

    base: Path
    grid: tuple[Setting, ...]
    out: Path
    settings: tuple[str, ...] = ()
    public: str = ""
    public_args: tuple[str, ...] = ()
    charge: str = ""
    held_out: str = ""
    held_out_args: tuple[str, ...] = ()
    expected_runs: float = 0.0
    eta: float = 1.0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    progress: Callable[[str], None] = logger.info


def run_sweep(request: SweepRequest) -> SweepResult:
    """Train every setting, or for a selection a random number of random ones, and write ``sweep.json``.

    Raises UserError, before anything is trained, for requests that are not covered.
    """
    if bool(request.public) == bool(request.charge):
        raise UserError(
            "say which images to try on: --public CLASS|FOLDER (free), or the private ones with --charge composition "
            "(every run counts) or --charge selection (the best of a random number of runs)"
        )
    if request.out.exists():
        raise UserError(f"{request.out} exists; name a new folder with --out")
    if request.charge == SELECTION and not request.held_out:
        raise UserError("--charge selection needs public images to choose by: --held-out CLASS|FOLDER")
    runner = {"": _on_public, COMPOSITION: _composed, SELECTION: _selected}[request.charge]
    result = runner(request)
    result.write(request.out)
    return result


# ---------------------------------------------------------------------- the three modes


def _on_public(request: SweepRequest) -> SweepResult:
    node, full = _node(request, request.public, request.public_args)
    count = _dataset_size(request)
    held = min(HELD_OUT, len(full) // 5) if not request.held_out else 0
    used = min(count, len(full) - held)
    if used < 1:
        raise UserError(f"--public {request.public} has {len(full)} images, too few to train on and to score with")
    if used < count:
        logger.warning("%d public images play the %d private ones: batches are smaller than they will be", used, count)
    train_on = {"target": "ldm.data.part.Part", "params": {"of": node, "count": used}}
    scored = _held_out(request) if request.held_out else Part(full, held, used)
    base = _write_base(request, {"data": {"params": {"train": train_on, "validation": None, "test": None}}})
    runs = [_train(request, base, number, setting, ()) for number, setting in enumerate(request.grid, 1)]
    tried, best = ranked(request.grid, _names(request, runs), _scores(request, runs, scored))
    name = " ".join([request.public, *request.public_args])
    statement = f"{len(request.grid)} settings were tried on public images ({name}), and none on the private ones"
    return SweepResult(PUBLIC, name, request.held_out or name, statement, tried, best, len(request.grid))


def _composed(request: SweepRequest) -> SweepResult:
    scored = _held_out(request) if request.held_out else None
    base = _write_base(request, {})
    charges = request.out / "charges"
    overrides = compose(base, [(*request.settings, *setting) for setting in request.grid], charges)
    request.progress(f"{len(request.grid)} runs together cost epsilon {total_epsilon(charges, base):.4g}")
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
    scored = _held_out(request)
    selection = Selection.with_mean(request.expected_runs or 2.0 * len(request.grid), request.eta)
    base = _write_base(request, {})
    words = select(base, [(*request.settings, *setting) for setting in request.grid], selection)
    request.progress(f"{selection.describe()}: neither the number nor the other runs may be published")
    generator = secret_generator()
    hidden = request.out / ".candidates"
    best: tuple[NDArray[np.float64], Setting, Path] | None = None
    try:
        for number in range(1, selection.draw(generator) + 1):
            setting = request.grid[int(generator.integers(len(request.grid)))]
            run = _train(request, base, number, setting, words, hidden)
            losses = _loss(request, run, scored)
            if best is None or losses.mean() < best[0].mean():
                best = (losses, setting, run)
        assert best is not None  # at least one run is drawn
        kept = request.out / "best"
        shutil.move(best[2], kept)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)  # the other runs are not part of what is published
    tried, place = ranked([best[1]], [kept.name], {0: best[0]})
    statement = f"{len(request.grid)} settings were tried on the private images; {selection.describe()}"
    return SweepResult(SELECTION, "the private images", request.held_out, statement, tried, place, len(request.grid))


# ---------------------------------------------------------------------- training and scoring


def _write_base(request: SweepRequest, changes: dict[str, Any]) -> Path:
    path = request.out / "base.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump({"base": str(request.base.resolve()), **changes}, sort_keys=False))
    return path


def _train(
    request: SweepRequest, base: Path, number: int, setting: Setting, more: Sequence[str], folder: Path | None = None
) -> Path:
    if folder is None:  # the number of runs of a selection is secret
        request.progress(f"run {number} of {len(request.grid)}: {' '.join(setting)}")
    options = RunOptions(
        base=[str(base)],
        train=True,
        no_test=True,
        name=f"{number:02d}",
        logdir=str(folder or request.out / "runs"),
        dotlist=[*request.settings, *setting, *more],
    )
    return train(options).path


def _loss(request: SweepRequest, run: Path, held_out: Any) -> NDArray[np.float64]:
    files = ModelFiles.find(run)
    return image_losses(load_model(files.config, files.weights, request.device), held_out, LOSS, "scoring")


def _scores(request: SweepRequest, runs: Sequence[Path], held_out: Any) -> dict[int, NDArray[np.float64]]:
    return {place: _loss(request, run, held_out) for place, run in enumerate(runs)}


def _names(request: SweepRequest, runs: Sequence[Path]) -> list[str]:
    return [run.relative_to(request.out).as_posix() for run in runs]


def _node(request: SweepRequest, name: str, words: Sequence[str]) -> tuple[dict[str, Any], Any]:
    """The configuration node of a public data set, and the set; a folder gets size and channels of the private one."""
    if Path(name).is_dir():
        params = private_set(request.base).get("params") or {}
        given = {key: params[key] for key in ("size", "channels") if key in params}
        node = {"target": "ldm.data.folder.ImageFolder", "params": {**given, **parse_settings(words)}}
        node["params"]["root"] = str(Path(name).resolve())
    else:
        node = {"target": name, "params": parse_settings(words)}
    return node, open_dataset(node["target"], node["params"])


def _held_out(request: SweepRequest) -> Any:
    return _node(request, request.held_out, request.held_out_args)[1]


def _dataset_size(request: SweepRequest) -> int:
    from ldm.reports.budget import config_plan

    plan = config_plan(request.base, request.settings)[1]
    assert plan.num_records is not None  # config_plan demands it
    return plan.num_records


__all__ = ["SweepRequest", "Tried", "run_sweep"]
