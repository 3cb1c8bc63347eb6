"""What a checkpoint says about itself beside its weights, and whether that fits a configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ldm.errors import UserError

HEAD_KEYS = ("num_heads", "num_head_channels", "num_heads_upsample", "legacy", "use_new_attention_order")


def side_information(checkpoint: Mapping[str, Any], key: str) -> Any:
    """What a checkpoint carries beside its weights, from a Lightning file or from safetensors metadata; or None."""
    if key in checkpoint:
        return checkpoint[key]
    text = checkpoint.get("metadata", {}).get(key)
    return json.loads(text) if text else None


def check_heads(ours: Mapping[str, Any], stored: Any, source: Any) -> None:
    """Refuse a head count other than the checkpoint's: tensor shapes would agree and the function would not.

    ``ours`` are the network's parameters, ``stored`` the model configuration that the checkpoint carries, if any.
    """
    if not isinstance(stored, Mapping):
        return
    theirs = (stored.get("params", {}).get("unet_config") or {}).get("params")
    for key in HEAD_KEYS if theirs else ():
        if ours.get(key) != theirs.get(key):
            raise UserError(
                f"{source}: was trained with unet {key}={theirs.get(key)}, the config says {ours.get(key)}; "
                "the shapes agree but the results would not: use the checkpoint's value"
            )
