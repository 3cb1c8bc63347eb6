"""Sample from an unconditional model: a .pt file, or a .png grid."""

from __future__ import annotations

from pathlib import Path

from ldm.cli import ArgumentParser, run
from ldm.commands.sample import draw
from ldm.reports.flags import add_drawing_flags, add_sampling_flags


def main() -> None:
    """Parse the command line and sample."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--yaml", "-y", required=True, help="configuration the model was trained with")
    add("--ckpt", "-ckpt", required=True, help="checkpoint (.ckpt or .safetensors)")
    add(
        "--output",
        "-o",
        default=None,
        help="default: <config name>_samples.pt here; the same command goes on with it if it was stopped",
    )
    add("--num_samples", "-n", type=int, default=5000)
    add_sampling_flags(parser)
    add_drawing_flags(parser, seed_default=None)
    args = parser.parse_args()
    draw(args, args.yaml, args.ckpt, output=Path(args.output or f"{Path(args.yaml).stem}_samples.pt"))


if __name__ == "__main__":
    run(main)
