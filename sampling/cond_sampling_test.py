"""Sample a class-conditional model into conditional_mnist_samples.pt and a grid, as the published command does."""

from __future__ import annotations

from pathlib import Path

from ldm.cli import ArgumentParser, run
from ldm.commands.sample import draw
from ldm.inference import check_output
from ldm.reports.flags import add_drawing_flags, add_sampling_flags


def main() -> None:
    """Parse the command line and sample."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("-y", "--yaml", required=True, help="configuration the model was trained with")
    add("-ckpt", "--ckpt_path", "--ckpt", required=True, help="checkpoint (.ckpt or .safetensors)")
    add("-c", "--classes", nargs="+", type=int, default=list(range(10)), help="classes to sample")
    add("-n", "--num_samples", type=int, default=20, help="images in all, class by class")
    add("-o", "--output", default="conditional_mnist_samples.pt", help="the same command goes on if it was stopped")
    add("--picture", default="test_class_cond.jpg", help="grid of the samples")
    add_sampling_flags(parser)
    add_drawing_flags(parser)
    args = parser.parse_args()
    check_output(args.output, (".pt",))
    draw(args, args.yaml, args.ckpt_path, args.classes, picture=Path(args.picture))


if __name__ == "__main__":
    run(main)
