"""`dp-ldm budget`: the noise that meets an epsilon, the epsilon of a noise, or a table over batch sizes.

dp-ldm budget --epsilon 10 --delta 1e-5 --num_records 60000 --batch_size 2000 --epochs 200
dp-ldm budget --noise_multiplier 1.5 --delta 1e-5 --num_records 60000 --batch_size 2000 --epochs 200
dp-ldm budget --epsilon 1 --delta 1e-6 --num_records 60000 --batch_size 512 1024 2048 --epochs 50 \
    --plot budget.png
dp-ldm budget --yaml configs/finetuning/mnist32-dp-eps10.yaml model.params.dp_config.epsilon=1
dp-ldm budget --card logs/my_run
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ldm.cli import ArgumentParser, print_end, split_settings


def build_parser(prog: str = "dp-ldm budget") -> ArgumentParser:
    """The flags of the budget."""
    flags = ArgumentParser(
        prog=prog,
        description=__doc__,
        epilog="Further arguments key.path=value change the configurations after --yaml.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    flags.add_argument("--epsilon", type=float, help="find the noise for this epsilon")
    flags.add_argument("--noise_multiplier", type=float, help="find the epsilon of this noise (sigma)")
    flags.add_argument("--delta", type=float, help="chance of failure, far below 1 / number of records")
    flags.add_argument("--num_records", type=int, help="published number of records; sample rate = 1/ceil(N/B)")
    flags.add_argument("--sample_rate", type=float, help="chance of a record to be in a batch, instead of the rule")
    flags.add_argument("--batch_size", type=int, nargs="+", help="expected batch size; several give a table")
    flags.add_argument("--epochs", type=int, help="passes over the data (expected)")
    flags.add_argument("--steps", type=int, help="logical steps, instead of --epochs")
    flags.add_argument("--runs", type=int, default=1, help="runs on the same records to account together (default 1)")
    flags.add_argument("--relation", default="add_or_remove_one", help="or replace_one")
    flags.add_argument("--sampling", default="poisson", help="or without_replacement (needs replace_one)")
    flags.add_argument("--second_opinion", action="store_true", help="also ask the other accountants that apply")
    flags.add_argument("--plot", metavar="FILE.png", help="draw noise against batch size")
    flags.add_argument("--yaml", nargs="+", metavar="CONFIG", help="what private configurations would spend")
    flags.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="older spelling: key.path=value alone does the same"
    )
    flags.add_argument("--card", metavar="PATH", help="check a privacy card, a run directory or a file of weights")
    return flags


def main(argv: Sequence[str] | None = None, prog: str = "dp-ldm budget") -> None:
    """Parse the command line and print the budget."""
    settings, words = split_settings(sys.argv[1:] if argv is None else argv)
    arguments = build_parser(prog).parse_args(words)
    settings += arguments.set

    from ldm.errors import UserError
    from ldm.numbers import rounded_up
    from ldm.privacy.accounting import accountants_for, epsilon
    from ldm.privacy.budget import budget, table

    if arguments.card:
        from ldm.reports.claim import describe_claim

        print("\n".join(describe_claim(arguments.card)))
        return
    if arguments.yaml:
        from ldm.reports.budget import config_budget

        print(table([config_budget(path, settings) for path in arguments.yaml]))
        return
    if settings:
        raise UserError(f"{settings[0]}: settings change a configuration; type --yaml CONFIG {settings[0]}")
    missing = [flag for flag in ("delta", "batch_size") if getattr(arguments, flag) is None]
    if missing:
        raise UserError(f"missing --{' --'.join(missing)}; --help shows complete commands")
    rows = [
        budget(
            batch_size=batch_size,
            delta=arguments.delta,
            num_records=arguments.num_records,
            sample_rate=arguments.sample_rate,
            epochs=arguments.epochs,
            steps=arguments.steps,
            target_epsilon=arguments.epsilon,
            noise_multiplier=arguments.noise_multiplier,
            relation=arguments.relation,
            sampling=arguments.sampling,
            runs=arguments.runs,
        )
        for batch_size in arguments.batch_size
    ]
    print(table(rows))
    if arguments.second_opinion:
        for row in rows:
            for name in accountants_for(row.events()):
                found = rounded_up(epsilon(row.events(), row.delta, name), 5)
                print(f"batch {row.batch_size}: epsilon by {name} {found}")
    if arguments.plot:
        from ldm.reports.budget_plot import draw_budgets

        draw_budgets(rows, arguments.plot)
        print_end(
            arguments.plot, f"look at {arguments.plot}, then type dp-ldm train YAML with the batch that you chose"
        )
