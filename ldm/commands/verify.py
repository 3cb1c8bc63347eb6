"""`dp-ldm verify`: check a release folder; exit code 1 when a check fails."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ldm.cli import ArgumentParser, print_end


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, print one line per check and the verdict."""
    parser = ArgumentParser(prog="dp-ldm verify", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what dp-ldm release has written")
    parser.add_argument(
        "--card",
        type=Path,
        metavar="FILE",
        help="write the card that this version computes, .html or .md, to be read in place of the folder's documents, "
        "which are not compared then; for a release of another version",
    )
    args = parser.parse_args(argv)

    from ldm.reports.sample_source import how_to_sample
    from ldm.reports.verification import check_card_target, verify_release, write_card

    if args.card is not None:
        check_card_target(args.folder, args.card)
    verdict = verify_release(args.folder, documents=args.card is None)
    print("\n".join(verdict.lines()))
    if not verdict.sound:
        print("next: do not use this folder; ask the curator for a whole one")
        sys.exit(1)
    if args.card is not None:
        write_card(args.folder, args.card)
        print_end(args.card, f"read {args.card}, not the documents in {args.folder}", how_to_sample(args.folder))
        return
    print(f"next: {how_to_sample(args.folder)}")
