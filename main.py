"""Train an autoencoder, a latent diffusion model, or fine-tune one privately, from YAML files.

python main.py --base configs/quickstart/finetune-dp-eps10.yaml -t --accelerator cpu
python main.py --resume logs/2026-01-01T00-00-00_finetune-dp-eps10 -t
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from callbacks.cuda_callback import CUDACallback
from callbacks.image_logger import ImageLogger
from callbacks.setup_callback import SetupCallback
from ldm.cli import ArgumentParser, run, str2bool
from ldm.data.module import DataModuleFromConfig, WrappedDataset
from ldm.training import RunOptions, train
from ldm.training.trainer_flags import add_trainer_flags

# the names that YAML files of the lineage look for here
__all__ = [
    "CUDACallback",
    "DataModuleFromConfig",
    "ImageLogger",
    "SetupCallback",
    "WrappedDataset",
    "get_parser",
    "main",
]

SETTING = re.compile(r"((model|data|lightning)(?=[.=])|[a-z_]\w*\.)[\w.\[\]-]*=")


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
    # settings are taken out first: behind --base F, -t or -n they would be read as the value of that flag
    dotlist: list[str] = []
    words: list[str] = []
    for word in sys.argv[1:]:
        (dotlist if SETTING.match(word) and not Path(word).exists() else words).append(word)
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
