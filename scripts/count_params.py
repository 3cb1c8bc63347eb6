"""Count the parameters of a model: all, trained, adapters and embedding, part by part, within seconds.

python scripts/count_params.py configs/finetuning/mnist32-dp-eps10.yaml configs/finetuning/cifar32-dp-eps10.yaml
python scripts/count_params.py configs/finetuning/celeba64-dp-eps1.yaml model.params.ablation_blocks=9
python scripts/count_params.py --ckpt logs/my_run/checkpoints/last.ckpt --json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from ldm.cli import ArgumentParser, run, split_settings


def _parser() -> ArgumentParser:
    flags = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("configs", nargs="*", metavar="CONFIG", help="training configurations (YAML)")
    flags.add_argument("--ckpt", nargs="+", default=[], metavar="FILE", help="checkpoints to count")
    flags.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="older spelling: key.path=value alone does the same"
    )
    flags.add_argument("--json", action="store_true", help="print a JSON list")
    return flags


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and print the counts."""
    settings, words = split_settings(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(words)
    settings += arguments.set

    from ldm.errors import UserError
    from ldm.reports.parameter_counts import count_checkpoint, count_config

    if not arguments.configs and not arguments.ckpt:
        raise UserError("nothing to count: name configurations, or checkpoints after --ckpt")
    if settings and not arguments.configs:
        raise UserError(f"{settings[0]}: settings change configurations; a checkpoint is counted as it is")
    counts = [count_config(path, settings) for path in arguments.configs]
    counts += [count_checkpoint(path) for path in arguments.ckpt]
    if arguments.json:
        print(json.dumps([count.as_dict() for count in counts], indent=2))
    else:
        print("\n\n".join(map(str, counts)))


if __name__ == "__main__":
    run(main)
