"""Keeping reduced-precision matrix products (TF32, bf16) out of norms and sums, whatever the process has allowed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch


@cache
def _switches(device_type: str) -> list[tuple[object, str, object]]:
    """Owner, attribute and full-precision value of every setting that rounds the inputs of fp32 products."""
    backends: Any = torch.backends  # what it holds differs between releases
    if device_type == "cuda":
        if hasattr(backends.cuda.matmul, "fp32_precision"):
            return [(owner, "fp32_precision", "ieee") for owner in (backends.cuda.matmul, backends.cudnn.conv)]
        return [(backends.cuda.matmul, "allow_tf32", False), (backends.cudnn, "allow_tf32", False)]
    if device_type == "cpu" and hasattr(backends.mkldnn, "matmul"):
        return [(owner, "fp32_precision", "ieee") for owner in (backends.mkldnn.matmul, backends.mkldnn.conv)]
    return []


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Products of fp32 tensors inside this context use fp32 throughout; the process's settings come back after it.

    A norm from exact products would not bound a sum from rounded ones: bf16 keeps 8 bits, TF32 keeps 11.
    """
    changed = []
    try:
        for owner, attribute, wanted in _switches(device_type):
            before = getattr(owner, attribute)
            if before not in (wanted, "none"):  # none: whatever the general setting says, which is full by default
                changed.append((owner, attribute, before))
                setattr(owner, attribute, wanted)
        yield
    finally:
        for owner, attribute, before in changed:
            setattr(owner, attribute, before)
