"""`dp-ldm verify`: check a release folder; exit code 1 when a check fails."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ldm.cli import ArgumentParser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, print one line per check and the verdict."""
    parser = ArgumentParser(prog="dp-ldm verify", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what dp-ldm release has written")
    args = parser.parse_args(argv)

    from ldm.reports.sample_source import how_to_sample
    from ldm.reports.verification import verify_release

    verdict = verify_release(args.folder)
    print("\n".join(verdict.lines()))
    if not verdict.sound:
        print("next: do not use this folder; ask the curator for a whole one")
        sys.exit(1)
    print(f"next: {how_to_sample(args.folder)}")
