"""Keeps messages of the Trainer that are not about the user's run off the screen."""

from __future__ import annotations

import logging
import warnings

IRRELEVANT_MESSAGES = (
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*module\(s\) in eval mode at the start of training.*",  # frozen stages are meant to be in that mode
    r".*Total length of `list` across ranks is zero.*",  # no validation set is a choice
    r".*does not have many workers.*",
    r".*smaller than the logging interval.*",
    r".*values cannot be logged.*",
)


class WarningFilter(logging.Filter):
    """Drops the Trainer's tips about other products."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "Tip:" not in record.getMessage()


def filter_lightning_warnings() -> None:
    """Silence the messages above; warnings about the run itself are left alone."""
    for pattern in IRRELEVANT_MESSAGES:
        warnings.filterwarnings("ignore", message=pattern)
    logger = logging.getLogger("pytorch_lightning.utilities.rank_zero")
    if not any(isinstance(known, WarningFilter) for known in logger.filters):
        logger.addFilter(WarningFilter())
