"""`AfterTraining`: another program's logger, which gets the metrics of a private run when training has ended.

A service such as W&B notes the time of every entry and measures the machine while a run lasts. Both follow the sizes of
the Poisson draws. Entries that arrive together after the last step reveal nothing about single steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from pytorch_lightning.loggers import Logger

logger = logging.getLogger(__name__)


class AfterTraining(Logger):
    """Keeps metrics in memory, and hands them to the logger that ``build`` makes in `finalize`."""

    def __init__(self, build: Callable[[], Logger], kind: str) -> None:
        super().__init__()
        self.build = build
        self.kind = kind
        self._entries: list[tuple[dict[str, float], int | None]] = []
        self._settings: dict[str, Any] = {}
        self._done = False

    @property
    def name(self) -> str:
        return self.kind

    @property
    def version(self) -> str:
        return ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._entries.append((dict(metrics), step))

    def log_hyperparams(self, params: Any, *_: Any, **__: Any) -> None:
        self._settings.update(dict(params))

    def finalize(self, status: str) -> None:
        """Make the logger and hand over everything at once; Lightning calls this at the end, also of a failed run."""
        if self._done or not self._entries:
            return
        self._done = True
        inner = self.build()
        if self._settings:
            inner.log_hyperparams(self._settings)
        for metrics, step in self._entries:
            inner.log_metrics(metrics, step)
        inner.finalize(status)
        logger.info("%s: %d entries handed over after training", self.kind, len(self._entries))
