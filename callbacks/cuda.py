"""`CUDACallback` under its import path in the original code."""

from __future__ import annotations

from callbacks.cuda_callback import CUDACallback

__all__ = ["CUDACallback"]
