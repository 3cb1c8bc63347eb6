"""`dp-ldm release`: a finished private run as a folder that can be handed over."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from ldm.cli import ArgumentParser, print_end, typed


def build_parser() -> ArgumentParser:
    """The flags of the command."""
    parser = ArgumentParser(prog="dp-ldm release", description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="run directory, such as logs/2026-01-01T00-00-00_faces")
    add("out", type=Path, metavar="OUT", help="new folder to write")
    add(
        "--checkpoint",
        "--ckpt",
        type=Path,
        metavar="FILE",
        help="checkpoint of the run; checkpoints/last.ckpt without it",
    )
    add(
        "--half",
        action="store_true",
        help="weights and statistics in half precision: half the size; score it again",
    )
    add("--title", default="", help="heading of the card")
    add("--curator", default="", help="who answers for the data")
    add("--contact", default="", help="how to reach the curator")
    add("--intended-use", default="", help="what the model and its images are for")
    add(
        "--class-names",
        nargs="*",
        default=[],
        metavar="NAME",
        help="public names, by label; those of the YAML without it",
    )
    add("--tuning", default="", help="what was tried, and on which data")
    add("--licence", default="", help="licence of the weights")
    add(
        "--audit", default="", help="a sentence on audits beside that of dp-ldm audit, which goes on the card by itself"
    )
    add("--date", default=datetime.date.today().isoformat(), help="date of the release")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and write the release."""
    args = build_parser().parse_args(argv)

    from ldm.reports.model_files import run_class_names
    from ldm.reports.release import release_run
    from ldm.reports.release_facts import ReleaseFacts
    from ldm.reports.sample_source import how_to_sample

    facts = ReleaseFacts(
        title=args.title,
        curator=args.curator,
        contact=args.contact,
        intended_use=args.intended_use,
        class_names=tuple(args.class_names) or run_class_names(args.run),
        tuning=args.tuning,
        licence=args.licence,
        date=args.date,
        audit=args.audit,
    )
    files = release_run(args.run, args.out, facts, args.checkpoint, args.half)
    print_end(
        f"{args.out}: {', '.join(path.name for path in files)}",
        f"read {args.out / 'card.html'}, then type dp-ldm verify {typed(args.out)}",
        how_to_sample(args.out),
    )
