"""From YAML files to a trained model: `train` carries out the run that `RunOptions` describe."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm.training.options import RunOptions

if TYPE_CHECKING:
    from ldm.training.run_directory import RunDirectory

__all__ = ["RunOptions", "train"]


def train(options: RunOptions) -> RunDirectory:
    """Carry out the run that ``options`` describe; returns the run directory.

    Files, flags and settings are checked before torch and Lightning (seconds) are imported. Raises UserError for
    mistakes that the user can correct, `ldm.errors.Stopped` when a signal or Ctrl-C ended the run.
    """
    from ldm.training.request import read_request

    request = read_request(options)
    from ldm.training.driver import execute

    return execute(request)
