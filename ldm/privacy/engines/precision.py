"""Keeps reduced-precision matrix products (TF32, bf16) out of norms and sums, under any process-wide settings."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch


@cache
def _switches(device_type: str) -> list[tuple[object, str, object]]:
    """Owner, attribute and full-precision value of every setting that rounds the inputs of fp32 products."""
    backends: Any = torch.backends  # its attributes differ between releases
    if device_type == "cuda":
        if hasattr(backends.cuda.matmul, "fp32_precision"):
            return [(owner, "fp32_precision", "ieee") for owner in (backends.cuda.matmul, backends.cudnn.conv)]
        return [(backends.cuda.matmul, "allow_tf32", False), (backends.cudnn, "allow_tf32", False)]
    if device_type == "cpu" and hasattr(backends.mkldnn, "matmul"):
        return [(owner, "fp32_precision", "ieee") for owner in (backends.mkldnn.matmul, backends.mkldnn.conv)]
    return []


class FullPrecision:
    """Products of fp32 tensors inside this context use fp32 throughout; on exit the earlier settings are restored.

    A norm from exact products would not bound a sum from rounded ones, since bf16 keeps 8 bits and TF32 keeps 11. The
    settings are read when the context is made; it may be entered any number of times after that, one at a time.
    """

    def __init__(self, device_type: str) -> None:
        switches = [(*switch, getattr(*switch[:2])) for switch in _switches(device_type)]
        # "none" follows the general setting, which is full precision by default
        self._changes = [switch for switch in switches if switch[3] not in (switch[2], "none")]

    def __enter__(self) -> None:
        for owner, attribute, wanted, _ in self._changes:
            setattr(owner, attribute, wanted)

    def __exit__(self, *_: object) -> None:
        for owner, attribute, _wanted, before in self._changes:
            setattr(owner, attribute, before)
