"""Sample from a model conditioned on captions, or on classes: a .pt file, or a .png grid."""

from __future__ import annotations

from ldm.cli import ArgumentParser, run
from ldm.commands.sample import add_output_flags, draw
from ldm.inference import read_prompts
from ldm.reports.flags import add_drawing_flags, add_sampling_flags


def main() -> None:
    """Parse the command line and sample."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--yaml", "-y", required=True, help="configuration the model was trained with")
    add("--ckpt", "-ckpt", required=True, help="checkpoint (.ckpt or .safetensors)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", nargs="+", metavar="TEXT", help="captions, each in quotes")
    what.add_argument("--prompts", metavar="FILE", help="captions, one a line")
    what.add_argument("--classes", "-c", nargs="+", type=int, help="classes, for a model of classes")
    add_output_flags(parser)
    add_sampling_flags(parser)
    add_drawing_flags(parser)
    args = parser.parse_args()
    prompts = args.prompt if args.prompts is None else read_prompts(args.prompts)
    draw(args, args.yaml, args.ckpt, args.classes, prompts, by_caption=prompts is not None)


if __name__ == "__main__":
    run(main)
