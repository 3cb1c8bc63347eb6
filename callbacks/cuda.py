"""`CUDACallback` under the address that the original code gives it."""

from __future__ import annotations

from callbacks.cuda_callback import CUDACallback

__all__ = ["CUDACallback"]
