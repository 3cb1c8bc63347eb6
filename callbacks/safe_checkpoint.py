"""Checkpoint files that are complete or not there at all, and that are read without executing anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytorch_lightning.plugins.io import TorchCheckpointIO

from ldm.checkpoint import read_checkpoint, save_checkpoint


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary name and renames; reads with the restricted reader."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return dict(read_checkpoint(path))  # Lightning brings older files up to date in place
