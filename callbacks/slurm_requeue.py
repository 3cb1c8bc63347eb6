"""Requeued SLURM jobs, and the note by which the next attempt finds the run of the previous one."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)


def job_id() -> str:
    """The number of this SLURM job (``123``, or ``123_4`` in an array); empty outside a job."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")


def requeues_itself() -> bool:
    """Whether this process is in a SLURM batch job that Lightning would requeue on SIGUSR1."""
    if not job_id():
        return False
    # late, because startup imports this module
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

    return bool(SLURMEnvironment.detect())


def requeue() -> bool:
    """Put this job back into the queue, and log whether SLURM accepted it."""
    try:
        done = subprocess.run(["scontrol", "requeue", job_id()], capture_output=True, text=True, check=False)
    except OSError as error:
        logger.warning("job %s was not requeued: scontrol: %s", job_id(), error.strerror)
        return False
    if done.returncode:
        logger.warning("job %s was not requeued: %s", job_id(), " ".join(done.stderr.split()) or done.returncode)
        return False
    logger.info("job %s is requeued and will go on with this run", job_id())
    return True


def note_run(logdir: str | Path, run: Path) -> None:
    """Write the run of this job's command to a note in ``logdir`` for the next attempt; no effect outside a job."""
    if job_id():
        note_path(logdir).write_text(str(run.absolute()))


def forget_run(logdir: str | Path) -> None:
    """Remove the note of a finished run."""
    if job_id():
        note_path(logdir).unlink(missing_ok=True)


def noted_run(logdir: str | Path) -> Path | None:
    """The run directory that an earlier attempt of this SLURM job was working on, or None at the first attempt."""
    if not job_id() or os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        return None
    note = note_path(logdir)
    path = Path(note.read_text()) if note.is_file() else None
    return path if path is not None and path.is_dir() else None


def note_path(logdir: str | Path, words: Sequence[str] | None = None) -> Path:
    """The path of the note, one per command line of a job."""
    command = hashlib.sha256(json.dumps(list(sys.argv if words is None else words)).encode()).hexdigest()[:12]
    return Path(logdir) / f".slurm-{job_id()}-{command}"
