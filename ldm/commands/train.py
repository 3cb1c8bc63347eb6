"""`dp-ldm train`: train an autoencoder, a latent diffusion model, or fine-tune one privately, from YAML files.

dp-ldm train my-images.yaml
dp-ldm train my-images.yaml lightning.trainer.max_steps=20 --accelerator cpu
dp-ldm train --resume logs/2026-01-01T00-00-00_my-images
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli import ArgumentParser, print_end, split_settings, str2bool, typed
from ldm.reports.flags import add_download_flag
from ldm.training import RunOptions, train
from ldm.training.trainer_flags import add_trainer_flags

if TYPE_CHECKING:
    from ldm.training.run_directory import RunDirectory


def build_parser(prog: str, description: str) -> ArgumentParser:
    """The flags of the published commands, and every Trainer argument."""
    parser = ArgumentParser(
        prog=prog, description=description, epilog="Further arguments key.path=value override the YAML."
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
    add_download_flag(parser)
    add_trainer_flags(parser)
    return parser


def read_options(parser: ArgumentParser, words: Sequence[str], *, files_alone: bool = False) -> RunOptions:
    """The options of a command line.

    With ``files_alone``, a word that is neither a flag nor a setting is read as a YAML file, as after ``--base``.
    """
    dotlist, words = split_settings(words)
    options, rest = parser.parse_known_args(words)
    base: list[str] = []
    for item in options.base:
        (dotlist if "=" in item and not Path(item).exists() else base).append(item)
    for item in rest:
        if files_alone and not item.startswith("-") and ("=" not in item or Path(item).exists()):
            base.append(item)
            continue
        if item.startswith("-") or "=" not in item:
            parser.error(parser.describe_unknown([item]))
        dotlist.append(item)
    values = vars(options)
    own = {name: values.pop(name) for name in RunOptions.flags()}
    own["base"] = base
    trainer = {name: value for name, value in values.items() if value is not None and name != "project"}
    return RunOptions(dotlist=dotlist, trainer=trainer, **own)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and train."""
    parser = build_parser("dp-ldm train", (__doc__ or "").splitlines()[0].partition(": ")[2])
    parser.usage = "dp-ldm train YAML ... [flags] [key.path=value ...]"
    parser.set_defaults(train=True)
    options = read_options(parser, sys.argv[1:] if argv is None else argv, files_alone=True)
    print_trained(train(options), options)


def print_trained(run_dir: RunDirectory, options: RunOptions) -> None:
    """Print what a run of these options has written, and what to type next."""
    from ldm.training.run_directory import launched

    if launched():  # of several processes, only one prints
        return
    if options.dry_run:
        print("nothing was trained or written; next: type the same command without --dry-run")
        return
    if not options.train:
        print("nothing was trained; next: type the same command with -t")
        return
    from ldm.reports.sample_source import how_to_sample
    from ldm.training.request import is_private_card

    following = [how_to_sample(run_dir.path)]
    if run_dir.privacy_card.is_file() and is_private_card(run_dir.privacy_card):
        following.append(f"dp-ldm audit {typed(run_dir.path)}  # puts a measured bound on the card")
        following.append(f"dp-ldm release {typed(run_dir.path)} NEW_FOLDER")
    elif not run_dir.privacy_card.is_file():
        following[0] += "  # a latent diffusion model"
    print_end(run_dir.path, *following)
