"""Checkpoint files: read without executing code, loaded strictly, written atomically."""

from __future__ import annotations

from ldm.checkpoint.content import Checkpoint
from ldm.checkpoint.digest import state_digest
from ldm.checkpoint.ema import ema_to_parameters, split_ema
from ldm.checkpoint.export import export_checkpoint, without_paths
from ldm.checkpoint.io import (
    PICKLED_SUFFIXES,
    SUFFIXES,
    load_weights,
    read_checkpoint,
    save_checkpoint,
    save_safetensors,
)
from ldm.checkpoint.metadata import (
    UNPROTECTED_DATA,
    check_metadata,
    checkpoint_metadata,
    inherited_privacy,
    joined_accounts,
    unprotected_data,
)

__all__ = [
    "PICKLED_SUFFIXES",
    "SUFFIXES",
    "UNPROTECTED_DATA",
    "Checkpoint",
    "check_metadata",
    "checkpoint_metadata",
    "ema_to_parameters",
    "export_checkpoint",
    "inherited_privacy",
    "joined_accounts",
    "load_weights",
    "read_checkpoint",
    "save_checkpoint",
    "save_safetensors",
    "split_ema",
    "state_digest",
    "unprotected_data",
    "without_paths",
]
