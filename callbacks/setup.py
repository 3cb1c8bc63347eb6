"""`SetupCallback` under the address that the original code gives it."""

from __future__ import annotations

from callbacks.setup_callback import SetupCallback

__all__ = ["SetupCallback"]
