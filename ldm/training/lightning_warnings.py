"""Filters Lightning warnings that do not concern the user's run."""

from __future__ import annotations

import logging
import warnings

IRRELEVANT_MESSAGES = (
    r".*isinstance\(treespec, LeafSpec\).*",
    r".*module\(s\) in eval mode at the start of training.*",  # frozen stages are meant to be in that mode
    r".*Total length of `list` across ranks is zero.*",  # a run without a validation set is allowed
    r".*does not have many workers.*",
    r".*smaller than the logging interval.*",
    r".*values cannot be logged.*",
    r".*Checkpoint directory .* exists and is not empty.*",  # the folder of a resumed run
    r".*your dataloader is not resumable.*",  # the private sampler restores its own position, other loaders restart
    r".*no pre-optimization state was saved.*",  # checkpoints need the state after the step
)
IRRELEVANT_LINES = ("Tip:", "`weights_only` was not set", "Bypassing SIGTERM")


class WarningFilter(logging.Filter):
    """Drops Lightning's product tips and its messages about settings that this program makes."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(line in message for line in IRRELEVANT_LINES)


def filter_lightning_warnings() -> None:
    """Silence the messages above; warnings about the run itself are left alone."""
    for pattern in IRRELEVANT_MESSAGES:
        warnings.filterwarnings("ignore", message=pattern)
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logger = logging.getLogger(f"pytorch_lightning.{name}")
        if not any(isinstance(known, WarningFilter) for known in logger.filters):
            logger.addFilter(WarningFilter())
