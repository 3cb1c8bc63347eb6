"""`dp-ldm sample`: draw images from a release folder, a run directory, or a YAML file and a checkpoint.

dp-ldm sample release/ --output samples.pt --num_samples 1000
dp-ldm sample logs/2026-01-01T00-00-00_my-images --output samples.png --classes cat dog
dp-ldm sample release/ --output samples.pt --source model --steps 50
dp-ldm sample --yaml my-model.yaml --ckpt last.ckpt --output samples.png model.params.scale_factor=0.2
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli import ArgumentParser, pick_device, print_end, print_part_end, split_settings, typed
from ldm.errors import UserError
from ldm.inference import SamplingRequest, check_output
from ldm.inference.request import check_grid, require_file
from ldm.models.diffusion.sampling_section import DRAWS, SOURCES
from ldm.reports.flags import add_drawing_flags, add_sampling_flags, sampling_options
from ldm.samples.shards import Shard

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
    line: str | None = None,
    **more: Any,
) -> None:
    """Sample the diffusion model by the flags of sampling, and print the files that were written. Raises UserError.

    ``by_caption``: a column of a grid is a caption, else a line is a class. ``line`` names the source of the images;
    None for a checkpoint that was named alone. ``more``: other fields of the request.
    """
    kinds = len(classes or prompts or ())
    columns = 10 if not kinds else kinds if by_caption else max(1, round(args.num_samples / kinds))
    output = Path(more.pop("output", args.output))
    request = SamplingRequest(
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
    )
    request.check()
    if line is None:
        from ldm.reports.sample_source import line_of_weights

        line = line_of_weights(config, request.settings)
    if line and request.shard.first:
        print(line)
    complete = request.run()
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
            f"dp-ldm evaluate --samples {typed(output)} --real FOLDER --real_args size:{size}",
            f"dp-ldm export {typed(output)} NEW_FOLDER",
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
    source = parser.add_mutually_exclusive_group()
    words = (
        "samples of the diffusion model, or decoded draws of the released class statistics; the declared one without it"
    )
    source.add_argument("--source", choices=SOURCES, help=words)
    source.add_argument("--draws", dest="source", action="store_const", const=DRAWS, help="same as --source draws")
    add_sampling_flags(parser)
    add_drawing_flags(parser)
    return parser


def draw_statistics(args: argparse.Namespace, files: ModelFiles, classes: Sequence[int] | None, shard: Shard) -> bool:
    """Write images decoded from draws of the run's released statistics; whether the output is complete.

    Raises UserError for a class without statistics.
    """
    assert files.draws is not None  # `SampleSource.choose` has looked
    from ldm.inference.draws import DrawsPlan, decoded_draws, write_draws
    from ldm.samples import save_grid

    output, device = Path(args.output), pick_device(args.device)
    plan = DrawsPlan(
        files.draws, files.config, files.weights, args.num_samples, classes, files.class_names, seed=args.seed
    )
    if output.suffix != ".png":
        return write_draws(output, plan, device, shard)
    drawn = decoded_draws(plan, device)
    kinds = len(set(drawn.labels.tolist())) if drawn.labels is not None else 1
    save_grid(drawn.images, output, columns=max(1, round(args.num_samples / kinds)))
    return True


def flag_of_the_model(args: argparse.Namespace, settings: Sequence[str]) -> str | None:
    """The first argument that is about the diffusion model or its sampler, so that it means nothing for draws."""
    given = {
        "--sampler": args.sampler,
        "--steps": args.steps,
        "--eta": args.eta,
        "--lineage": args.lineage or None,
        "--guidance": None if args.guidance == 1.0 else args.guidance,
        "--uc": args.uc,
        "--guide_with": args.guide_with,
        "--prompt": args.prompt,
        "--yaml": args.yaml,
    }
    of_the_model = [word for word in settings if not word.startswith("sampling.")]
    return next((flag for flag, value in given.items() if value is not None), next(iter(of_the_model), None))


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and sample."""
    settings, words = split_settings(sys.argv[1:] if argv is None else argv)
    args = build_parser().parse_args(words)
    check_arguments(args)

    from ldm.reports.sample_source import SampleSource

    files = model_files(args)
    files.check_settings(settings)
    classes = chosen_classes(args, files)
    source = SampleSource.choose(files, args.source, flag_of_the_model(args, settings), settings)
    if source.draws:
        shard = Shard.here(args.shard)
        check_grid(Path(args.output), shard)
        if shard.first:
            print(source.line)
        complete = draw_statistics(args, files, classes if args.classes or files.class_names else None, shard)
        print_sampled(Path(args.output), args.num_samples, complete)
    else:
        line = None if args.model is None else source.line
        names = files.class_names or None
        draw(args, files.config, files.weights, classes, args.prompt, line=line, class_names=names, settings=settings)


def check_arguments(args: argparse.Namespace) -> None:
    """Raise UserError for a mistake that can be seen before torch is imported."""
    if args.model is not None and (args.yaml or args.ckpt):
        raise UserError(f"{args.model} and --yaml or --ckpt were given; give one model")
    check_output(args.output)
    sampling_options(args)
    for path, kind in ((args.yaml, "config file"), (args.ckpt, "checkpoint")):
        if path is not None:
            require_file(path, kind, shipped=path is args.yaml)


def model_files(args: argparse.Namespace) -> ModelFiles:
    """The files of MODEL, or those that --yaml and --ckpt name. Raises UserError without a model."""
    from ldm.reports.model_files import ModelFiles

    if args.model is not None:
        return ModelFiles.find(args.model)
    if args.yaml and args.ckpt:
        return ModelFiles(args.yaml, args.ckpt)
    raise UserError("no model; type dp-ldm sample RELEASE_FOLDER, or RUN, or --yaml FILE --ckpt FILE")


def chosen_classes(args: argparse.Namespace, files: ModelFiles) -> list[int] | None:
    """The labels of --classes, by default all; None for a model without classes, and for captions."""
    if args.prompt is not None:
        return None
    return files.labels(args.classes) if args.classes else files.default_classes()
