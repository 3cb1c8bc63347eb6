"""Checkpoint files that are written atomically and read without executing code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning.plugins.io import TorchCheckpointIO

from callbacks.step_clock import StepClock
from ldm.checkpoint import read_checkpoint, save_checkpoint


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name and renames; reads with the restricted reader.

    Every checkpoint of a run passes through this class. ``account`` is the privacy account of the initial weights, or
    None; it is stored in each file. With a ``clock`` (a private run) files have its timestamps.
    """

    def __init__(self, account: Any = None, clock: StepClock | None = None) -> None:
        super().__init__()
        self.account = account
        self.clock = clock

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.account:
            checkpoint = {**checkpoint, "start_privacy": self.account}
        save_checkpoint(checkpoint, path)
        if self.clock is not None:
            self.clock.set_file_time(path, int(checkpoint.get("global_step", 0)))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return dict(read_checkpoint(path))  # a copy, because Lightning migrates older files in place
