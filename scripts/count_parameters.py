"""Count the parameters of a fine-tuned checkpoint, in the words of the DP-LoRA reproduction study.

python scripts/count_parameters.py --ckpt logs/my_run/checkpoints/last.ckpt

Its "total" counts every tensor of the file, averages and autoencoder included, and its "trainable" the adapters alone.
Below its lines stand the counts of scripts/count_params.py, part by part.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ldm.cli import ArgumentParser, run


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and print the counts."""
    flags = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--ckpt", required=True, metavar="FILE", help="checkpoint to count")
    arguments = flags.parse_args(argv)

    from ldm.reports.parameter_counts import count_checkpoint, format_for_study

    counts = count_checkpoint(arguments.ckpt)
    print(format_for_study(counts))
    print(counts)


if __name__ == "__main__":
    run(main)
