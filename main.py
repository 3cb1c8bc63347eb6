"""Train an autoencoder, a latent diffusion model, or fine-tune one privately, from YAML files.

python main.py --base configs/quickstart/finetune-dp-eps10.yaml -t --accelerator cpu
python main.py --resume logs/2026-01-01T00-00-00_finetune-dp-eps10 -t

`dp-ldm train` is the same command, and always trains.
"""

from __future__ import annotations

import sys
from typing import Any

from ldm.cli import ArgumentParser, run
from ldm.commands import train as command
from ldm.training import train


def __getattr__(name: str) -> Any:
    """The names that YAML files and programs of the lineage look for here, imported when one is asked for."""
    from ldm.config import MAIN_ALIASES, get_obj_from_str

    if f"main.{name}" in MAIN_ALIASES:
        return get_obj_from_str(f"main.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def build_parser() -> ArgumentParser:
    """The flags of the lineage, and every Trainer argument."""
    return command.build_parser("main.py", (__doc__ or "").splitlines()[0])


def get_parser() -> ArgumentParser:
    """`build_parser` under the lineage's name."""
    return build_parser()


def main() -> None:
    """Parse the command line and train."""
    options = command.read_options(build_parser(), sys.argv[1:])
    command.print_trained(train(options), options)


if __name__ == "__main__":
    run(main)
