"""Where a run writes: its name, its folders, and how it is found again for resuming."""

from __future__ import annotations

import datetime
import glob
import os
from dataclasses import dataclass
from pathlib import Path

from ldm.errors import UserError, nearest
from ldm.files import check_writable

#: How the first process of a run over several devices tells the others where the run writes.
VARIABLE = "LDM_RUN_DIRECTORY"


@dataclass(frozen=True)
class RunDirectory:
    """The folder of one run: ``<logdir>/<time>_<name>``, with ``configs``, ``checkpoints`` and ``images`` in it."""

    path: Path
    stamp: str
    resume_from: Path | None = None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def configs(self) -> Path:
        return self.path / "configs"

    @property
    def privacy_card(self) -> Path:
        return self.path / "privacy.json"

    @property
    def statistics(self) -> Path:
        """What a private run has released of its records before the first step, with its account."""
        return self.path / "statistics.ckpt"

    @property
    def warmed_up(self) -> Path:
        """The model that was trained on what the statistics say."""
        return self.path / "warm_up.ckpt"

    def trained(self) -> bool:
        """Whether there is a checkpoint of a training step."""
        return any(self.checkpoints.glob("*.ckpt"))

    def announce_to_child_processes(self) -> None:
        """Let the processes that this one starts find the same folder: the time in its name is not theirs."""
        os.environ[VARIABLE] = str(self.path.absolute())

    def earlier_configs(self) -> list[Path]:
        """Configuration files that the run was started with, oldest first."""
        # the name may hold characters that glob reads as patterns
        return [Path(p) for p in sorted(glob.glob(str(Path(glob.escape(str(self.configs))) / "*.yaml")))]


def launched() -> bool:
    """Whether another process has started this one to take part in its run."""
    return os.environ.get("LOCAL_RANK", "0") != "0"


def parents_run() -> RunDirectory | None:
    """The run of the process that started this one, if one did."""
    path = os.environ.get(VARIABLE)
    return RunDirectory(Path(path), Path(path).name[:19]) if path and launched() else None


def new_run(
    logdir: str, name: str, base: list[str], postfix: str, now: datetime.datetime | None = None
) -> RunDirectory:
    """Name a new run after ``name`` or, without one, after the first configuration file. Creates nothing.

    Raises UserError for a name that would be a path, and for a ``logdir`` that cannot be written to.
    """
    for flag, text in (("--name", name), ("--postfix", postfix)):
        if "/" in text or os.sep in text:
            raise UserError(f"{flag} {text}: a name holds no slash; type --logdir FOLDER to choose where runs go")
    check_writable(Path(logdir), "--logdir")
    stamp = (now or datetime.datetime.now()).strftime("%Y-%m-%dT%H-%M-%S")
    suffix = name or (Path(base[0]).stem if base else "")
    first = path = Path(logdir) / (stamp + (f"_{suffix}" if suffix else "") + postfix)
    number = 2
    while path.exists():  # two runs in one second
        path = first.with_name(f"{first.name}-{number}")
        number += 1
    return RunDirectory(path, stamp)


def resumed_run(resume: str, now: datetime.datetime | None = None) -> RunDirectory:
    """Find the run that a folder, or a checkpoint file two levels below one, belongs to."""
    stamp = (now or datetime.datetime.now()).strftime("%Y-%m-%dT%H-%M-%S")
    target = Path(os.path.abspath(resume))  # the folders above a bare file name count too
    if not target.exists():
        folder = target.parent
        hint = nearest(target.name, (p.name for p in folder.iterdir())) if folder.is_dir() else ""
        raise UserError(f"--resume {resume}: there is no such run directory or checkpoint{hint}")
    run, checkpoint = (target.parent.parent, target) if target.is_file() else (target, target / "checkpoints/last.ckpt")
    stopped_early = RunDirectory(run, stamp)
    if target == run and stopped_early.statistics.is_file() and not stopped_early.trained():
        check_writable(run, "--resume")
        return stopped_early
    if not checkpoint.is_file():
        raise UserError(f"--resume {resume}: it holds no checkpoints/last.ckpt; name a checkpoint file instead")
    check_writable(run, "--resume")
    return RunDirectory(run, stamp, checkpoint)
