"""How far a run of a stopped sweep got, read from its files."""

from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

from ldm.privacy.card import ReleaseCard
from ldm.training.newest_checkpoint import newest_checkpoint, steps_of
from ldm.training.run_directory import RunDirectory


class Stage(Enum):
    """NEW: nothing was released yet. UNFINISHED: it can go on, with its ledger. FINISHED: all steps are taken.
    LOST: it was charged, but has left nothing to go on from."""

    NEW = "new"
    UNFINISHED = "unfinished"
    FINISHED = "finished"
    LOST = "lost"


def stage_of(folder: Path, number: int) -> tuple[Stage, Path | None]:
    """The stage of run ``number`` below ``folder``, and the run directory that decides it; the newest of several."""
    found: dict[Stage, Path] = {}
    for path in sorted(folder.glob("*")):
        if (name := re.search(r"_(\d+)(-\d+)?$", path.name)) and int(name[1]) == number:
            found[_stage(RunDirectory(path))] = path
    for stage in (Stage.FINISHED, Stage.UNFINISHED, Stage.LOST):
        if stage in found:
            return stage, found[stage]
    return Stage.NEW, found.get(Stage.NEW)


def _stage(run: RunDirectory) -> Stage:
    card = ReleaseCard.read(run.privacy_card) if run.privacy_card.is_file() else None
    whole = steps_of(run.last_checkpoint) is not None
    if card is not None and whole and card.ledger.count(card.plan.event()) >= card.plan.steps:
        return Stage.FINISHED
    newest = newest_checkpoint(run.checkpoints)
    if (newest is not None and steps_of(newest) is not None) or (run.statistics.is_file() and not run.trained()):
        return Stage.UNFINISHED
    charged = run.statistics.is_file() or (card is not None and card.ledger.steps > 0)
    return Stage.LOST if charged else Stage.NEW
