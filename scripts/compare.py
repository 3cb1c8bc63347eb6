"""Put several evaluations side by side: one table, one JSON file, one page.

python scripts/compare.py outputs/evaluation/eps1 outputs/evaluation/eps10 --output outputs/comparison
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ldm.cli import ArgumentParser, print_end, run


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, compare, write and print."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("runs", nargs="+", metavar="FOLDER|JSON", help="what scripts/evaluate.py wrote: its folder or evaluation.json")
    add("--names", nargs="+", help="what to call the runs; their folders without it")
    add("--output", default="outputs/comparison", metavar="FOLDER", help="where comparison.json and .html go")
    args = parser.parse_args(argv)

    from ldm.reports.comparison import compare_evaluations, format_comparison
    from ldm.reports.evaluation_files import check_output_folder

    check_output_folder(args.output)
    comparison = compare_evaluations(args.runs, args.names, args.output)
    print(format_comparison(comparison))
    page = Path(args.output) / "comparison.html"
    print_end(f"{args.output}: comparison.json, comparison.html", f"open {page} in a browser")


if __name__ == "__main__":
    run(main)
