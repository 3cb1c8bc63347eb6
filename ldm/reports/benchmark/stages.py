"""`Stage` and `run_stages`: work that runs once, with an estimate of the remaining time."""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.files import read_json, write_text
from ldm.numbers import duration, time_left

logger = logging.getLogger(__name__)

Result = dict[str, Any]

#: Weight of the estimates against measured stages, in seconds.
PRIOR = 300.0
LARGEST_RESULT = 2**26  # bytes of a stage's file


@dataclass(frozen=True)
class Stage:
    """One piece of work. ``run`` returns plain values; once they lie in ``folder/key.json``, the stage is done.

    ``seconds``: rough duration on two idle cores; measured stages correct the estimate for the machine. A stage that
    was stopped starts again, or continues from its own files.
    """

    key: str
    title: str
    folder: Path
    seconds: float
    run: Callable[[], Result]

    @property
    def path(self) -> Path:
        """The file of the result."""
        return self.folder / f"{self.key}.json"

    def result(self) -> Result | None:
        """The stored result, or None if the stage is not done."""
        return read_json(self.path, LARGEST_RESULT) if self.path.is_file() else None


def run_stages(stages: Sequence[Stage]) -> dict[str, Result]:
    """Run the unfinished stages in order; returns all results by key. Logs the next stage and the remaining time."""
    results: dict[str, Result] = {}
    expected = spent = 0.0
    for place, stage in enumerate(stages):
        done = stage.result()
        if done is None:
            # a stage of seconds is a poor measure of the pace of stages that take minutes
            pace = (spent + PRIOR) / (expected + PRIOR)
            left = pace * sum(later.seconds for later in stages[place:] if later.result() is None)
            logger.info("stage %d of %d: %s; %s", place + 1, len(stages), stage.title, time_left(left))
            started = time.monotonic()
            found = stage.run()
            elapsed = time.monotonic() - started
            expected, spent = expected + stage.seconds, spent + elapsed
            done = {**found, "seconds": round(elapsed, 1), "peak_mib": peak_memory()}
            write_text(stage.path, json.dumps(done, indent=2) + "\n")
            logger.info("%s: done in %s", stage.title, duration(elapsed))
        results[stage.key] = done
    return results


def peak_memory() -> int:
    """Peak memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1024 if sys.platform != "darwin" else 1024**2)
