"""The run directory: its name, its folders, and the search for it on resuming."""

from __future__ import annotations

import datetime
import glob
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ldm.errors import UserError, nearest
from ldm.files import check_writable
from ldm.training.newest_checkpoint import LAST, newest_checkpoint

logger = logging.getLogger(__name__)

#: Environment variable by which the first process of a run passes the run directory to the others.
VARIABLE = "LDM_RUN_DIRECTORY"


@dataclass(frozen=True)
class RunDirectory:
    """The folder of one run: ``<logdir>/<time>_<name>``, with ``configs``, ``checkpoints`` and ``images`` in it.

    ``stamp``: the start of this process, which names its configuration files; "" for one that reads a finished run.
    ``resume_from``: the checkpoint from which this process goes on.
    """

    path: Path
    stamp: str = ""
    resume_from: Path | None = None

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def last_checkpoint(self) -> Path:
        """The newest checkpoint of a run that has ended."""
        return self.checkpoints / LAST

    @property
    def configs(self) -> Path:
        """The folder of the configurations, two files for each start of the run."""
        return self.path / "configs"

    @property
    def privacy_card(self) -> Path:
        """The release card; a run without privacy has one that says so."""
        return self.path / "privacy.json"

    @property
    def progress(self) -> Path:
        """File with a line for every few steps."""
        return self.path / "progress.log"

    @property
    def microbatch(self) -> Path:
        """File of the microbatch size that ``max_batch_size: auto`` found, and the device it fits."""
        return self.path / "microbatch.json"

    @property
    def statistics(self) -> Path:
        """File of the statistics that a private run releases before the first step, with its account."""
        return self.path / "statistics.ckpt"

    @property
    def draws(self) -> Path:
        """File of the distribution that was fitted to those statistics, from which images can be drawn."""
        return self.path / "draws.safetensors"

    @property
    def warmed_up(self) -> Path:
        """Checkpoint of the model after the warm-up on the released statistics."""
        return self.path / "warm_up.ckpt"

    def trained(self) -> bool:
        """Whether there is a checkpoint of a training step."""
        return any(self.checkpoints.glob("*.ckpt"))

    def announce_to_child_processes(self) -> None:
        """Pass the folder to child processes, which would otherwise name it after their own start time."""
        os.environ[VARIABLE] = str(self.path.absolute())

    def remove_leftovers(self) -> None:
        """Delete the unfinished temporary files of a killed run."""
        for pattern in ("**/.*.tmp*", ".privacy.json.*"):
            for path in self.path.glob(pattern):
                if path.is_file():
                    path.unlink(missing_ok=True)
                    logger.info("removed %s, which an earlier run did not finish", path)

    def record(self) -> Callable[[], None]:
        """Record the current files; returns a function that deletes all files created since."""
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        before = set(self.path.rglob("*"))

        def take_back() -> None:
            for path in sorted(set(self.path.rglob("*")) - before, reverse=True):  # deepest paths first
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
            for folder in missing:
                if folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()

        return take_back

    def earlier_configs(self) -> list[Path]:
        """Configuration files of the run's earlier starts, oldest first."""
        # the name may contain characters with a meaning in glob patterns
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
    """A new run named after ``name`` or else after the first configuration file; creates no folder.

    Raises UserError for a name with a path in it, and for a ``logdir`` without write permission.
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
    """The run of a run folder, or of a checkpoint file two levels below it."""
    stamp = (now or datetime.datetime.now()).strftime("%Y-%m-%dT%H-%M-%S")
    target = Path(os.path.abspath(resume))  # a bare file name needs its parent folders
    if not target.exists():
        folder = target.parent
        hint = nearest(target.name, (p.name for p in folder.iterdir())) if folder.is_dir() else ""
        raise UserError(f"--resume {resume}: there is no such run directory or checkpoint{hint}")
    run, checkpoint = (target.parent.parent, target) if target.is_file() else (target, None)
    checkpoint = checkpoint or newest_checkpoint(run / "checkpoints")
    stopped_early = RunDirectory(run, stamp)
    if checkpoint is None and stopped_early.statistics.is_file() and not stopped_early.trained():
        check_writable(run, "--resume")
        return stopped_early
    if checkpoint is None:
        raise UserError(
            f"--resume {resume}: its folder checkpoints holds no whole checkpoint of a training run; name a checkpoint "
            "file instead"
        )
    if not target.is_file() and checkpoint.name != "last.ckpt":
        logger.info("going on from %s, the newest whole checkpoint", checkpoint)
    check_writable(run, "--resume")
    return RunDirectory(run, stamp, checkpoint)
