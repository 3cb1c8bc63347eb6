"""`dp-ldm sweep`: try settings of a private training, on public images or with every private run charged.

dp-ldm sweep my-images.yaml --try model.base_learning_rate=1e-5,4e-5 --public ldm.data.emnist.EMNISTTrain
dp-ldm sweep my-images.yaml --try ... --charge composition                    all runs are kept and charged
dp-ldm sweep my-images.yaml --try ... --charge selection --held-out FOLDER    the best of a random number of runs
dp-ldm sweep --resume logs/sweep-TIME                                         go on with a sweep that was stopped
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli import ArgumentParser, pick_device, print_end, split_settings, typed
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.reports.sweep import SweepRequest, SweepResult


def build_parser(prog: str = "dp-ldm sweep") -> ArgumentParser:
    """The flags of the command."""
    parser = ArgumentParser(
        prog=prog,
        description=__doc__,
        epilog="Further arguments key.path=value change all runs, such as lightning.trainer.accelerator=cpu.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("yaml", nargs="?", type=Path, metavar="YAML", help="configuration of the private run")
    add("--try", dest="tried", action="append", default=[], metavar="KEY=A,B", help="values of a key; repeat for more")
    add("--public", default="", metavar="CLASS|FOLDER", help="public images that play the private ones")
    add("--public_args", nargs="*", default=[], metavar="KEY:VALUE", help="arguments of --public, such as size:32")
    add("--charge", choices=("composition", "selection"), default="", help="train on the private images, and pay so")
    add("--held-out", default="", metavar="CLASS|FOLDER", help="public images that score the runs")
    add("--held-out-args", nargs="*", default=[], metavar="KEY:VALUE", help="arguments of --held-out")
    add("--expected-runs", type=float, default=0.0, help="selection: mean number; twice the settings without it")
    add("--eta", type=float, default=1.0, help="selection: 1 geometric, 0 logarithmic (cheaper, longer tail)")
    add("--output", "--out", "-o", type=Path, metavar="FOLDER", help="new folder; logs/sweep-TIME without it")
    add("--resume", type=Path, metavar="FOLDER", help="go on with the sweep in this folder, which was stopped")
    add("--device", default=None, help="where runs are scored; training follows lightning.trainer.accelerator")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "dp-ldm sweep") -> None:
    """Parse the command line, train, score and print."""
    words = list(sys.argv[1:] if argv is None else argv)
    taken = {place + 1 for place, word in enumerate(words) if word == "--try"}  # its value looks like a setting
    settings = split_settings([word for place, word in enumerate(words) if place not in taken])[0]
    args = build_parser(prog).parse_args(
        [word for place, word in enumerate(words) if place in taken or word not in settings]
    )

    if args.resume is None and args.yaml is None:
        raise UserError("no configuration; type dp-ldm sweep YAML --try KEY=A,B, or dp-ldm sweep --resume FOLDER")
    if args.resume is not None and (args.yaml or settings or args.tried):
        raise UserError(f"--resume {args.resume} goes on with what was asked for; leave the YAML file and settings out")

    from ldm.reports.sweep import resume_sweep, run_sweep

    out = args.resume or args.output or Path("logs") / f"sweep-{datetime.datetime.now():%Y-%m-%dT%H-%M-%S}"
    if args.resume is not None:
        result = resume_sweep(out, pick_device(args.device), print)
    else:
        result = run_sweep(_request(args, settings, out))
    print("\n".join(result.lines()))
    print(result.statement)
    print_end(out, *_following(args, out, result))


def _following(args: argparse.Namespace, out: Path, result: SweepResult) -> tuple[str, ...]:
    """What to type after a sweep: a training with the best setting, or the release of the run that may be released."""
    if result.mode == "public" and result.best is not None:
        chosen = " ".join(map(typed, result.tried[result.best].setting))
        return (
            f"dp-ldm train {typed(args.yaml or 'YAML')} {chosen}",
            f"dp-ldm release RUN OUT --tuning {typed(result.statement)}",
        )
    runs = [entry.run for entry in result.tried if entry.run]
    if not runs:
        return ("nothing can be released; every run was stopped before its first checkpoint",)
    chosen = runs[0] if result.best is None else result.tried[result.best].run
    return (f"dp-ldm release {typed(out / chosen)} NEW_FOLDER",)


def _request(args: argparse.Namespace, settings: Sequence[str], out: Path) -> SweepRequest:
    from ldm.reports.sweep import SweepRequest, parse_grid

    return SweepRequest(
        base=args.yaml,
        grid=parse_grid(args.tried),
        out=out,
        settings=tuple(settings),
        public=args.public,
        public_args=tuple(args.public_args),
        charge=args.charge,
        held_out=args.held_out,
        held_out_args=tuple(args.held_out_args),
        expected_runs=args.expected_runs,
        eta=args.eta,
        device=pick_device(args.device),
        progress=print,
    )
