"""A benchmark from the public model to one row of a table: private training, 60,000 samples, a classifier, baselines.

python scripts/benchmark.py configs/benchmark/mnist.yaml --epsilon 1 10
Stopped, it goes on where it was when the same command is typed again.
"""

from __future__ import annotations

from collections.abc import Sequence

from ldm.cli import ArgumentParser, print_end, run
from ldm.reports.flags import add_download_flag


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, run the remaining steps, and print the table."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("config", help="benchmark file, such as configs/benchmark/mnist.yaml")
    add("--epsilon", nargs="+", default=["1"], help="which budgets of the file")
    add("--output", default="logs/benchmark", help="folder of everything that is written")
    add("--repeat", type=int, default=1, help="whole private runs a budget")
    add("--quick", action="store_true", help="the whole chain on a small scale, in minutes; its numbers mean nothing")
    add("--rehearse", action="store_true", help="another data set plays the private one, to choose settings by")
    add("--statistics_only", action="store_true", help="spend the whole budget on statistics, no gradients")
    add("--draws_only", action="store_true", help="the same without the model that is trained on draws")
    add("--baselines", nargs="*", default=None, help="which rows are measured beside the private one; default all")
    add(
        "--only_baselines", action="store_true", help="measure the baselines that need no private run, and no other row"
    )
    add_download_flag(parser)
    args = parser.parse_args(argv)

    from ldm.reports.benchmark import BenchmarkOptions, run_benchmark
    from ldm.reports.benchmark.options import BASELINES
    from ldm.reports.benchmark.table import collect_rows, format_table

    folder = run_benchmark(
        BenchmarkOptions(
            config=args.config,
            epsilons=tuple(args.epsilon),
            output=args.output,
            repeat=args.repeat,
            quick=args.quick,
            rehearse=args.rehearse,
            statistics_only=args.statistics_only,
            draws_only=args.draws_only,
            only_baselines=args.only_baselines,
            baselines=BASELINES if args.baselines is None else tuple(args.baselines),
        )
    )
    print(format_table(collect_rows(folder)))
    shorter = [flag for flag, given in (("--quick", args.quick), ("--rehearse", args.rehearse)) if given]
    more = (
        f"without {' and '.join(shorter)}" if shorter else f"with --repeat {args.repeat + 1} for one more private run"
    )
    print_end(f"{folder}: results and samples", f"the same command {more}; it goes on from what is there")


if __name__ == "__main__":
    run(main)
