"""The table of `dp-ldm`'s commands, and the entry point that picks one of them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from ldm.cli import run
from ldm.errors import UserError, nearest

#: The command's name, which is also its module's, and its line in the list.
COMMANDS = {
    "new": "look at a folder of images and write the YAML that trains on it privately",
    "train": "train from YAML files, privately where they say so",
    "sweep": "try settings on public images, or on private ones with every run charged",
    "sample": "draw images from a release folder, a run, or a YAML file and a checkpoint",
    "evaluate": "measure generated images against real ones",
    "audit": "measure what a run or a plan leaks, with canaries, beside its claim",
    "release": "write a finished private run as a folder that can be handed over",
    "budget": "what a privacy budget buys, before training",
    "export": "samples or a model in the form of another program (npz, Parquet, hub, diffusers, PEFT)",
    "verify": "check a release folder: checksums, epsilon, plan, weights, documents",
    "completion": "print the script that completes commands and flags in bash and zsh",
}


def usage() -> str:
    """The text that ``dp-ldm`` and ``dp-ldm --help`` print."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {line}" for name, line in COMMANDS.items()]
    return "\n".join(
        ["usage: dp-ldm COMMAND [arguments]", "", *lines, "", "dp-ldm COMMAND --help lists its arguments."]
    )


def dispatch(words: Sequence[str]) -> None:
    """Run the command named by the first word with the rest as arguments. Raises UserError for an unknown command."""
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return
    name, *rest = words
    if name not in COMMANDS:
        raise UserError(f"unknown command '{name}'{nearest(name, COMMANDS)}; dp-ldm --help lists them")
    importlib.import_module(f"ldm.commands.{name}").main(rest)


def main() -> None:
    """Entry point of the console script."""
    run(lambda: dispatch(sys.argv[1:]))
