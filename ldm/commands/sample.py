"""`dp-ldm sample`: draw images from a release folder, a run directory, or a YAML file and a checkpoint.

dp-ldm sample release/ --output samples.pt --num_samples 1000
dp-ldm sample logs/2026-01-01T00-00-00_my-images --output samples.png --classes cat dog
dp-ldm sample --yaml my-model.yaml --ckpt last.ckpt --output samples.png model.params.scale_factor=0.2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli import ArgumentParser, print_end, print_part_end, split_settings
from ldm.errors import UserError
from ldm.inference import SamplingRequest, check_output
from ldm.inference.request import require_file
from ldm.reports.flags import add_drawing_flags, add_sampling_flags, sampling_options
from ldm.shards import Shard

if TYPE_CHECKING:
    from ldm.reports.model_files import ModelFiles


def add_output_flags(parser: ArgumentParser, count: int = 20) -> None:
    """--output and --num_samples."""
    add = parser.add_argument
    add(
        "--output",
        "-o",
        required=True,
        help="samples.pt, which the same command goes on with if it was stopped, or samples.png for a grid",
    )
    add("--num_samples", "-n", type=int, default=count, help="images in all, class by class")


def draw(
    args: argparse.Namespace,
    config: str | Path,
    weights: str | Path,
    classes: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
    *,
    by_caption: bool = False,
    **more: Any,
) -> None:
    """Draw the images that the flags of sampling ask for, and say what was written. Raises UserError.

    ``by_caption``: a column of a grid is a caption, else a line is a class. ``more``: other fields of the request.
    """
    kinds = len(classes or prompts or ())
    columns = 10 if not kinds else kinds if by_caption else max(1, round(args.num_samples / kinds))
    output = Path(more.pop("output", args.output))
    complete = SamplingRequest(
        output=output,
        config=config,
        checkpoint=weights,
        count=args.num_samples,
        options=sampling_options(args),
        classes=classes,
        prompts=prompts,
        columns=columns,
        device=args.device,
        ema=args.ema,
        guide=args.guide_with,
        shard=Shard.here(args.shard),
        **more,
    ).run()
    print_sampled(output, args.num_samples, complete, more.get("picture"))


def print_sampled(output: Path, count: int, complete: bool = True, picture: Path | None = None) -> None:
    """Print that ``count`` images were written, or this process's part of them, and what to type next."""
    written = f"{output}: {count} images{f', and the grid {picture}' if picture else ''}"
    if not complete:
        print_part_end(output)
    elif output.suffix == ".pt":
        from ldm.samples import SampleFile

        size = SampleFile.open(output).shape[-1]
        print_end(
            written,
            f"dp-ldm evaluate --samples {output} --real FOLDER --real_args size:{size}",
            f"dp-ldm export {output} NEW_FOLDER",
        )
    else:
        print_end(
            written,
            f"look at {output}; --output samples.pt writes a file for dp-ldm evaluate and dp-ldm export",
        )


def build_parser() -> ArgumentParser:
    """The flags of the command."""
    parser = ArgumentParser(
        prog="dp-ldm sample",
        description=(__doc__ or "").splitlines()[0].partition(": ")[2],
        epilog="Further arguments key.path=value override the model's configuration.",
    )
    add = parser.add_argument
    add("model", nargs="?", type=Path, metavar="MODEL", help="release folder or run directory")
    add("--yaml", "-y", type=Path, help="in place of MODEL: configuration the model was trained with")
    add("--ckpt", "-ckpt", type=Path, help="with --yaml: checkpoint (.ckpt or .safetensors)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--classes", "-c", nargs="+", metavar="CLASS", help="numbers or names; all without it")
    what.add_argument("--prompt", nargs="+", metavar="TEXT", help="captions, for a model of text")
    add_output_flags(parser)
    add("--draws", action="store_true", help="decode draws of the released class statistics; no diffusion step")
    add_sampling_flags(parser)
    add_drawing_flags(parser)
    return parser


def draw_statistics(args: argparse.Namespace, files: ModelFiles, classes: Sequence[int] | None) -> None:
    """Write images decoded from draws of the run's released statistics. Raises UserError for a model without them."""
    if files.draws is None:
        raise UserError(
            "--draws: this model has no draws.safetensors; a run of dp-ldm new with class moments writes one, and its "
            "release folder holds it"
        )
    from ldm.inference.draws import decoded_draws
    from ldm.samples import save_grid

    names, output = files.class_names, Path(args.output)
    drawn = decoded_draws(
        files.draws,
        files.config,
        files.weights,
        args.num_samples,
        classes,
        class_names=names,
        seed=args.seed,
        device=args.device,
    )
    if output.suffix == ".png":
        kinds = len(set(drawn.labels.tolist())) if drawn.labels is not None else 1
        save_grid(drawn.images, output, columns=max(1, round(args.num_samples / kinds)))
    else:
        drawn.save(output)


def refuse_with_draws(args: argparse.Namespace, settings: Sequence[str]) -> None:
    """Raise UserError for flags of a sampler, or of another model, beside --draws."""
    given = (args.sampler, args.steps, args.eta, args.guide_with, args.prompt, args.yaml)
    others = bool(settings) or args.lineage or args.guidance != 1.0 or not Shard.here(args.shard).whole
    if others or any(value is not None for value in given):
        raise UserError("--draws takes no diffusion step: give MODEL alone, without sampler, guidance, prompt or shard")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and sample."""
    settings, words = split_settings(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(words)
    if args.model is not None and (args.yaml or args.ckpt):
        raise UserError(f"{args.model} and --yaml or --ckpt were given; give one model")
    check_output(args.output)
    if args.draws:
        refuse_with_draws(args, settings)
    sampling_options(args)  # a mistake is refused before torch is imported
    for path, kind in ((args.yaml, "config file"), (args.ckpt, "checkpoint")):
        if path is not None:
            require_file(path, kind, shipped=path is args.yaml)

    from ldm.reports.model_files import ModelFiles

    if args.model is not None:
        files = ModelFiles.find(args.model)
    elif args.yaml and args.ckpt:
        files = ModelFiles(args.yaml, args.ckpt)
    else:
        raise UserError("no model; type dp-ldm sample RELEASE_FOLDER, or RUN, or --yaml FILE --ckpt FILE")
    files.check_settings(settings)
    classes = None
    if args.prompt is None:
        classes = files.labels(args.classes) if args.classes else files.default_classes()
    names = files.class_names or None
    if args.draws:
        draw_statistics(args, files, classes)
        print_sampled(Path(args.output), args.num_samples)
    else:
        draw(args, files.config, files.weights, classes, args.prompt, class_names=names, settings=settings)
