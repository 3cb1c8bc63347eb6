"""Low-rank adapters (LoRA): layers, their configuration, and their insertion into a network."""

from __future__ import annotations

from ldm.modules.lora.config import INITS, SCALINGS, LoRAConfig, RankSchedule
from ldm.modules.lora.insertion import (
    adapters,
    find_targets,
    insert_adapters,
    is_adapter_name,
    merge_adapters,
)
from ldm.modules.lora.layers import Adapter, adapt

__all__ = [
    "INITS",
    "SCALINGS",
    "Adapter",
    "LoRAConfig",
    "RankSchedule",
    "adapt",
    "adapters",
    "find_targets",
    "insert_adapters",
    "is_adapter_name",
    "merge_adapters",
]
