"""`SetupCallback` under its import path in the original code."""

from __future__ import annotations

from callbacks.setup_callback import SetupCallback

__all__ = ["SetupCallback"]
