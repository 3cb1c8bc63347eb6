"""From YAML files to a trained model: `train` runs what `RunOptions` describe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldm.training.driver import RunOptions, train

__all__ = ["RunOptions", "train"]


def __getattr__(name: str) -> Any:
    """Import the driver, and with it Lightning (seconds), only when one of its names is asked for."""
    if name in __all__:
        from ldm.training import driver

        return getattr(driver, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
