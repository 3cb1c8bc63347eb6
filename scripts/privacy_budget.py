"""Plan a privacy budget; `dp-ldm budget` is the same command.

python scripts/privacy_budget.py --epsilon 10 --delta 1e-5 --num_records 60000 --batch_size 2000 --epochs 200
"""

from __future__ import annotations

from collections.abc import Sequence

from ldm.cli import run
from ldm.commands import budget


def main(argv: Sequence[str] | None = None) -> None:
    """Print the budget."""
    budget.main(argv, prog="privacy_budget.py")


if __name__ == "__main__":
    run(main)
