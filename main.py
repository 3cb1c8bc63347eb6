"""Train an autoencoder, a latent diffusion model, or fine-tune one privately, from YAML files.

python main.py --base configs/quickstart/finetune-dp-eps10.yaml -t --accelerator cpu
python main.py --resume logs/2026-01-01T00-00-00_finetune-dp-eps10 -t
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ldm.cli import ArgumentParser, run, split_settings, str2bool
from ldm.training import RunOptions, train
from ldm.training.trainer_flags import add_trainer_flags


def __getattr__(name: str) -> Any:
    """The names that YAML files and programs of the lineage look for here, imported when one is asked for."""
    from ldm.config import MAIN_ALIASES, get_obj_from_str

    if f"main.{name}" in MAIN_ALIASES:
        return get_obj_from_str(f"main.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def build_parser() -> ArgumentParser:
    """The flags of the lineage, and every Trainer argument."""
    parser = ArgumentParser(
        prog="main.py",
        description=__doc__.splitlines()[0],
        epilog="Further arguments key.path=value override the YAML.",
    )
    add = parser.add_argument
    add("-n", "--name", nargs="?", const=True, default="", help="name of the run, in place of the config's")
    add("-r", "--resume", default="", metavar="PATH", help="run directory or checkpoint file to resume from")
    add("-b", "--base", nargs="*", default=[], metavar="YAML", help="YAML files, merged from left to right")
    add("-t", "--train", type=str2bool, nargs="?", const=True, default=False, help="train")
    add("--no-test", type=str2bool, nargs="?", const=True, default=False, help="skip the test after training")
    add("-p", "--project", default=None, help="accepted for compatibility, unused")
    add("-d", "--debug", type=str2bool, nargs="?", const=True, default=False, help="post-mortem debugger")
    add("-s", "--seed", type=int, default=23, help="training seed; privacy noise and sampling never use it")
    add("-f", "--postfix", default="", help="appended to the name of the run")
    add("-l", "--logdir", default="logs", help="folder of the runs")
    add("--scale_lr", type=str2bool, nargs="?", const=True, default=True, help="scale the base learning rate")
    add("--dry-run", action="store_true", help="check everything, print the plan, and stop before anything is computed")
    add(
        "--allow-target", action="append", default=[], metavar="PREFIX", help="let YAML files name objects of a package"
    )
    add_trainer_flags(parser)
    return parser


def get_parser() -> ArgumentParser:
    """`build_parser` under the lineage's name."""
    return build_parser()


def main() -> None:
    """Parse the command line and train."""
    parser = build_parser()
    dotlist, words = split_settings(sys.argv[1:])
    options, rest = parser.parse_known_args(words)
    base: list[str] = []
    for item in options.base:
        (dotlist if "=" in item and not Path(item).exists() else base).append(item)
    for item in rest:
        if item.startswith("-") or "=" not in item:
            parser.error(parser.describe_unknown([item]))
        dotlist.append(item)
    values = vars(options)
    own = {name: values.pop(name) for name in RunOptions.FROM_FLAGS}
    own["base"] = base
    trainer = {name: value for name, value in values.items() if value is not None and name not in ("project",)}
    train(RunOptions(dotlist=dotlist, trainer=trainer, **own))


if __name__ == "__main__":
    run(main)
