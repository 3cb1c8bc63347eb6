"""What the published DP-LoRA code proves, against what it claims: epsilon of its noise when K copies are clipped apart.

The published code clips each of the K noise draws of a record on its own, so that one record moves the clipped sum by
up to K times the clipping norm C, while the noise is sized for C: the noise multiplier that counts is sigma / K. Sigma
is calibrated for the claimed epsilon with the published accountant (PRV), then epsilon is computed at sigma / K with
the tight one (PLD). With K inside the record, as here, the claim holds for every K.

python scripts/published_epsilon.py
python scripts/published_epsilon.py --setting celeba64 --epsilon 1
python scripts/published_epsilon.py --num_records 45000 --batch_size 4096 --epochs 150 --delta 2.1e-6 --copies 8
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from ldm.cli import ArgumentParser, run
from ldm.numbers import rounded_up

EPSILONS = (1.0, 5.0, 10.0)


@dataclass(frozen=True)
class Setting:
    """Public constants of one published experiment; ``copies`` is K."""

    name: str
    num_records: int
    batch_size: int
    epochs: int
    delta: float
    copies: int


SETTINGS = (
    Setting("mnist", 60_000, 2000, 200, 1e-5, 12),
    Setting("cifar10", 50_000, 80, 20, 1e-5, 8),
    Setting("celeba32", 162_770, 8192, 20, 1e-5, 2),
    Setting("celeba32-k4", 162_770, 8192, 20, 1e-5, 4),
    Setting("celeba64", 162_770, 8192, 20, 1e-6, 4),
    Setting("celebahq-24000", 24_000, 2048, 10, 1e-5, 4),
    Setting("celebahq", 28_000, 2048, 10, 1e-5, 4),
    Setting("celebahq-k2", 28_000, 2048, 10, 1e-5, 2),
    Setting("celebahq-k8", 28_000, 2048, 10, 1e-5, 8),
)


def proved(setting: Setting, claimed: float) -> tuple[float, float, int, float]:
    """Sigma for the claimed epsilon, sampling rate, steps, and epsilon when noise draws are clipped apart."""
    from ldm.privacy.accounting import calibrate, epsilon
    from ldm.privacy.event import SamplingEvent
    from ldm.privacy.plan import lineage_sample_rate, planned_steps

    rate = lineage_sample_rate(setting.num_records, setting.batch_size)
    steps = planned_steps(rate, epochs=setting.epochs)
    sigma = calibrate(target_epsilon=claimed, delta=setting.delta, sample_rate=rate, steps=steps, accountant="prv")
    return sigma, rate, steps, epsilon([(SamplingEvent(rate, sigma / setting.copies), steps)], setting.delta, "pld")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and print a table."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [setting.name for setting in SETTINGS]
    parser.add_argument("--setting", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}; all")
    parser.add_argument("--epsilon", type=float, nargs="+", default=EPSILONS, help="claimed (default 1 5 10)")
    own = parser.add_argument_group("a setting of your own, all five flags")
    own.add_argument("--num_records", type=int)
    own.add_argument("--batch_size", type=int)
    own.add_argument("--epochs", type=int)
    own.add_argument("--delta", type=float)
    own.add_argument("--copies", type=int, help="noise draws of a record that are clipped apart (K)")
    args = parser.parse_args(argv)
    values = [args.num_records, args.batch_size, args.epochs, args.delta, args.copies]
    given = [value for value in values if value is not None]
    if given and (len(given) < len(values) or args.setting):
        parser.error("type all of --num_records --batch_size --epochs --delta --copies and no --setting")
    settings = [Setting("own", *values)] if given else [s for s in SETTINGS if s.name in (args.setting or names)]
    if args.copies is not None and args.copies < 1:
        parser.error(f"--copies {args.copies}: a record has at least one noise draw")

    print(f"{'setting':<15} {'rate':>6} {'steps':>6} {'delta':>7} {'K':>3} {'claimed':>8} {'sigma':>8} {'proved':>9}")
    for setting in settings:
        for claimed in args.epsilon:
            sigma, rate, steps, epsilon = proved(setting, claimed)
            print(
                f"{setting.name:<15} {f'1/{round(1 / rate)}':>6} {steps:>6} {setting.delta:>7.0e} {setting.copies:>3} "
                f"{claimed:>8g} {sigma:>8.4f} {rounded_up(epsilon):>9}",
                flush=True,
            )


if __name__ == "__main__":
    run(main)
