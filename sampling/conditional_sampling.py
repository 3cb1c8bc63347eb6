"""Sample from a class-conditional model: a labelled .pt file, or a .png grid; `dp-ldm sample` takes releases, too."""

from __future__ import annotations

import argparse
import ast
from operator import index

from ldm.cli import ArgumentParser, run
from ldm.commands.sample import add_output_flags, draw
from ldm.reports.flags import add_drawing_flags, add_sampling_flags


def class_list(text: str) -> list[int]:
    """Parse one item of --classes: a number, or a list such as "[0, 1, 2]"."""
    try:
        value = ast.literal_eval(text)
        return [index(item) for item in (value if isinstance(value, (list, tuple)) else [value])]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no class or list of classes; type 0 1 2 or '[0, 1, 2]'"
        ) from None


def main() -> None:
    """Parse the command line and sample."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--yaml", "-y", required=True, help="configuration the model was trained with")
    add("--ckpt", "-ckpt", required=True, help="checkpoint (.ckpt or .safetensors)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--classes", "-c", nargs="+", type=class_list, default=[[0]], help="classes to sample")
    what.add_argument("--prompt", nargs="+", metavar="TEXT", help="captions, for a model of text")
    add_output_flags(parser)
    add_sampling_flags(parser)
    add_drawing_flags(parser)
    args = parser.parse_args()
    classes = None if args.prompt else [label for item in args.classes for label in item]
    draw(args, args.yaml, args.ckpt, classes, args.prompt)


if __name__ == "__main__":
    run(main)
