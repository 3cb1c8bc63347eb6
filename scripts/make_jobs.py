"""Write the SLURM jobs of the DP-LoRA study from their table, or check that the files are as the table says.

python scripts/make_jobs.py --write
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldm import jobs
from ldm.cli import ArgumentParser, run
from ldm.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and write or check."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help="write what differs, remove what is not in the table")
    what.add_argument("--check", action="store_true", help="change nothing; exit code 2 when a file differs")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[1] / "jobs")
    args = parser.parse_args(argv)
    if args.write:
        print(f"{args.folder}: {jobs.write(args.folder)} of {len(jobs.files())} files changed")
        return
    lines = jobs.differences(args.folder)
    if lines:
        more = f" and {len(lines) - 1} more" if len(lines) > 1 else ""
        raise UserError(f"{args.folder}/{lines[0]}{more}; type python scripts/make_jobs.py --write")
    print(f"{args.folder}: {len(jobs.files())} files as the table has them")


if __name__ == "__main__":
    run(main)
