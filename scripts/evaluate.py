"""Measure generated images against real ones; `dp-ldm evaluate` is the same command.

python scripts/evaluate.py --samples samples.pt --real ldm.data.mnist.MNISTTrain --suite mnist --output report
"""

from __future__ import annotations

from collections.abc import Sequence

from ldm.cli import run
from ldm.commands import evaluate


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write and print."""
    evaluate.main(argv, prog="evaluate.py")


if __name__ == "__main__":
    run(main)
