"""`dp-ldm sample`: draw images from a release folder, a run directory, or a YAML file and a checkpoint.

dp-ldm sample release/ --output samples.pt --num_samples 1000
dp-ldm sample logs/2026-01-01T00-00-00_my-images --output samples.png --classes cat dog
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ldm.cli import ArgumentParser, pick_device, seed
from ldm.errors import UserError


def add_sampling_flags(parser: ArgumentParser) -> None:
    """The flags of sampling by class or by caption; `draw` reads them."""
    add = parser.add_argument
    add(
        "--output",
        "-o",
        required=True,
        help="samples.pt, which the same command goes on with if it was stopped, or samples.png for a grid",
    )
    add("--num_samples", "-n", type=int, default=20, help="images in all, class by class")
    add("--batch_size", "-bs", type=int, default=500)
    add("--decoder_batch_size", type=int, default=None, help="images decoded at a time")
    add("--ddim_steps", type=int, default=200)
    add("--eta", type=float, default=1.0, help="0 deterministic, 1 ancestral noise")
    add("--uc", type=int, default=None, help="class that stands for no condition in guidance; default: the null class")
    add("--uc_scale", type=float, default=1.0, help="guidance scale; 1 is none")
    add("--seed", type=seed, default=0)
    add("--device", default=None, help="cpu, cuda, cuda:1; default: a GPU if there is one")
    add("--ema", action=argparse.BooleanOptionalAction, default=True, help="use the averaged weights if there are any")


def draw(
    args: argparse.Namespace,
    config: str | Path,
    weights: str | Path,
    classes: Sequence[int] | None,
    prompts: Sequence[str] | None,
    class_names: Sequence[str] | None = None,
) -> Path:
    """Sample with the flags of `add_sampling_flags`; returns the file that was written. Raises UserError.

    ``class_names`` are those that the configuration declares when None.
    """
    from ldm.inference import SamplingOptions, check_output, sample_set, write_samples
    from ldm.samples import save_grid

    output = check_output(args.output)
    options = SamplingOptions(
        steps=args.ddim_steps,
        eta=args.eta,
        scale=args.uc_scale,
        uncond_class=args.uc,
        batch_size=args.batch_size,
        decoder_batch_size=args.decoder_batch_size,
        seed=args.seed,
    )
    device = pick_device(args.device)
    count = args.num_samples
    condition: dict[str, Any] = {"classes": classes, "prompts": prompts, "class_names": class_names}
    if output.suffix == ".png":
        samples = sample_set(config, weights, count, options, **condition, device=device, ema=args.ema)
        kinds = classes or prompts
        save_grid(samples.images, output, columns=max(1, round(count / len(kinds))) if kinds else 10)
    else:
        write_samples(output, config, weights, count, options, **condition, device=device, ema=args.ema)
    return output


def build_parser() -> ArgumentParser:
    """The flags of the command."""
    parser = ArgumentParser(prog="dp-ldm sample", description=(__doc__ or "").splitlines()[0].partition(": ")[2])
    add = parser.add_argument
    add("model", nargs="?", type=Path, metavar="MODEL", help="release folder or run directory")
    add("--yaml", "-y", type=Path, help="in place of MODEL: configuration the model was trained with")
    add("--ckpt", "-ckpt", type=Path, help="with --yaml: checkpoint (.ckpt or .safetensors)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--classes", "-c", nargs="+", metavar="CLASS", help="numbers or names; all without it")
    what.add_argument("--prompt", nargs="+", metavar="TEXT", help="captions, for a model of text")
    add_sampling_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and sample."""
    args = build_parser().parse_args(argv)

    from ldm.reports.model_files import ModelFiles

    if args.model is not None and (args.yaml or args.ckpt):
        raise UserError(f"{args.model} and --yaml or --ckpt were given; give one model")
    if args.model is not None:
        files = ModelFiles.find(args.model)
    elif args.yaml and args.ckpt:
        files = ModelFiles(args.yaml, args.ckpt)
    else:
        raise UserError("no model; type dp-ldm sample RELEASE_FOLDER, or RUN, or --yaml FILE --ckpt FILE")
    classes = None
    if args.prompt is None:
        classes = files.labels(args.classes) if args.classes else files.default_classes()
    output = draw(args, files.config, files.weights, classes, args.prompt, files.class_names or None)
    print(f"written to {output}: {args.num_samples} images")
    if output.suffix == ".png":
        print(f"next: look at {output}; --output samples.pt writes a file for dp-ldm evaluate and dp-ldm export")
    else:
        print(f"next: dp-ldm evaluate --samples {output} --real FOLDER (images of the same size)")
        print(f"      dp-ldm export {output} NEW_FOLDER")
