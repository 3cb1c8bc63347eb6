"""Groups of flags that several commands share, so that one flag has one spelling, one default and one help text.

The module imports no heavy packages, so that `--help` is fast.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ldm.cli import ArgumentParser, pick_device, print_end, seed, typed
from ldm.errors import UserError
from ldm.files import DOWNLOAD_VARIABLE
from ldm.inference.options import (
    DEFAULT_SAMPLER,
    DEFAULT_STEPS,
    LINEAGE_STEPS,
    OLD_SAMPLERS,
    PRECISIONS,
    SAMPLERS,
    SamplingOptions,
)

if TYPE_CHECKING:
    from ldm.evaluation.classifiers.protocols import ClassifierProtocol

EXTRACTORS = "inception (FID), efficientnet-lite0, digits-cnn, pixels, or a dotted class"


def add_device_flag(parser: ArgumentParser) -> None:
    """--device; `ldm.cli.pick_device` reads it."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1; a GPU without it if there is one")


class _AllowDownloads(argparse.Action):
    """A flag without a value of its own: it sets the variable that data sets read, also in worker processes."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, *_: Any) -> None:
        os.environ[DOWNLOAD_VARIABLE] = "1"


def add_download_flag(parser: ArgumentParser) -> None:
    """--download; `ldm.files.downloads_allowed` tells whether it was given."""
    words = "fetch the files of a public data set that are missing; download: true in YAML does it for one set"
    parser.add_argument("--download", nargs=0, action=_AllowDownloads, default=argparse.SUPPRESS, help=words)


def add_dataset_flags(parser: ArgumentParser, flag: str, help: str, **options: Any) -> None:
    """--FLAG and --FLAG_args: a data set by its dotted class name with its settings, or a file."""
    parser.add_argument(f"--{flag}", help=help, **options)
    parser.add_argument(
        f"--{flag}_args", nargs="*", default=[], metavar="KEY:VALUE", help=f"arguments of --{flag}, such as size:32"
    )
    if "--download" not in parser.flags:
        add_download_flag(parser)


def add_extractor_flags(parser: ArgumentParser, *, default: str | None = "inception") -> None:
    """--extractor and --weights: the network whose features are compared."""
    parser.add_argument("--extractor", default=default, help=EXTRACTORS)
    parser.add_argument(
        "--weights", metavar="FILE", help="weights of the extractor; inception downloads its own without it"
    )


def add_sampling_flags(
    parser: ArgumentParser, *, batch_size: int = 500, guidance: float = 1.0, sampler: str = DEFAULT_SAMPLER
) -> None:
    """How images are sampled, the same in every command; `sampling_options` reads them.

    The other spellings of a flag are those of the published commands. ``sampler``: the one without --sampler.
    """
    add = parser.add_argument
    kind = parser.add_mutually_exclusive_group()
    names = ", ".join(SAMPLERS)
    kind.add_argument(
        "--sampler", choices=[*SAMPLERS, *OLD_SAMPLERS], metavar="NAME", help=f"{names}; {sampler} without it"
    )
    kind.add_argument("--plms", dest="sampler", action="store_const", const="plms", help="same as --sampler plms")
    kind.add_argument(
        "--dpm_solver",
        dest="sampler",
        action="store_const",
        const="dpm-solver++",
        help="same as --sampler dpm-solver++",
    )
    parser.set_defaults(default_sampler=sampler)
    steps = ", ".join(f"{DEFAULT_STEPS[name]} for {name}" for name in SAMPLERS)
    add("--steps", "--ddim_steps", "--ddim_step", "-step", type=int, metavar="N", help=f"without it {steps}")
    eta_help = "noise of ddim: 0 deterministic, 1 ancestral; without it 1 for ddim, 0 for the others"
    add("--eta", "-eta", "--ddim_eta", type=float, metavar="ETA", help=eta_help)
    add("--guidance", "--scale", "-scale", "--uc_scale", type=float, default=guidance, help="guidance scale; 1 is none")
    add("--uc", type=int, default=None, help="class that stands for no condition in guidance; default: the null class")
    add("--lineage", action="store_true", help=f"as the published commands sample: ddim with {LINEAGE_STEPS} steps")
    add("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="of the networks; fp32 where there is no bf16")
    add("--compile", action="store_true", help="compile the network first, for very many images")
    add("--batch_size", "-bs", "--bs", type=int, default=batch_size, help="images sampled at a time")
    add("--decoder_batch_size", type=int, default=None, help="images decoded at a time")


def add_drawing_flags(parser: ArgumentParser, *, seed_default: int | None = 0) -> None:
    """Where and by whom images are sampled: --seed, --device, --ema, --guide_with and --shard."""
    add = parser.add_argument
    add("--seed", type=seed, default=seed_default, help="of the images; a new one without it")
    add_device_flag(parser)
    add("--ema", action=argparse.BooleanOptionalAction, default=True, help="use the averaged weights if there are any")
    add("--guide_with", metavar="CKPT", help="guidance away from this weaker model, such as the public one")
    add_shard_flag(parser)


def add_shard_flag(parser: ArgumentParser) -> None:
    """--shard; `ldm.samples.shards.Shard.here` reads it."""
    parser.add_argument(
        "--shard", metavar="I/N", help="do part I of N, as a task of a SLURM array does; torchrun needs no flag"
    )


def sampling_options(args: argparse.Namespace, *, lineage_eta: float = 1.0, **more: Any) -> SamplingOptions:
    """The options that the flags of `add_sampling_flags` ask for, with ``more`` of them. Raises UserError.

    ``lineage_eta``: the noise that the published form of this command has.
    """
    steps, eta, sampler = args.steps, args.eta, args.sampler
    if args.lineage:
        if sampler is not None or steps is not None or eta is not None:
            raise UserError("--lineage sets sampler, steps and eta itself; leave them or --lineage out")
        sampler, steps, eta = "ddim", LINEAGE_STEPS, lineage_eta
    return SamplingOptions(
        steps=steps,
        eta=eta,
        guidance=args.guidance,
        uncond_class=args.uc,
        batch_size=args.batch_size,
        decoder_batch_size=args.decoder_batch_size,
        seed=getattr(args, "seed", None),
        sampler=args.default_sampler if sampler is None else sampler,
        precision=args.precision,
        compile=args.compile,
        **more,
    )


def add_model_flags(parser: ArgumentParser, *ckpt_spellings: str) -> None:
    """--yaml, --ckpt and --ema: a trained model."""
    add = parser.add_argument
    add("--yaml", "-y", required=True, help="configuration the model was trained with")
    add("--ckpt", *ckpt_spellings, required=True, help="checkpoint (.ckpt or .safetensors)")
    add("--ema", action=argparse.BooleanOptionalAction, default=True, help="use the averaged weights if there are any")


def add_classifier_flags(
    parser: ArgumentParser, *, epochs: int | None = None, batch_size: int | None = None, lr: float | None = None
) -> None:
    """Training settings of classifiers and the file of their scores. A default of None takes the protocol's value."""
    add = parser.add_argument

    def say(what: str, default: object) -> str:
        return f"{what}; the protocol's without it" if default is None else what

    add("--epochs", type=int, default=epochs, help=say("passes through the samples", epochs))
    add("--batch_size", type=int, default=batch_size, help=say("images a step", batch_size))
    add("--lr", type=float, default=lr, help=say("learning rate", lr))
    add("--seeds", type=int, default=1, help="how many times to repeat, with seeds 0, 1, ...")
    add("--amp", action="store_true", help="compute in bfloat16 where that is safe")
    add("--output", metavar="FILE.json", help="write all numbers, with the curve of every run")
    add_device_flag(parser)


def print_scores(
    args: argparse.Namespace,
    protocol: ClassifierProtocol,
    classifiers: Sequence[str],
    train: str,
    held_out: str | None = None,
) -> None:
    """Train and score by the flags of `add_classifier_flags`, --test and --test_args; print the table."""
    from ldm.evaluation.classifiers.downstream_files import score_files

    print(
        score_files(
            train,
            args.test,
            protocol,
            classifiers,
            test_args=args.test_args,
            held_out=held_out,
            held_out_args=getattr(args, "val_args", ()),
            seeds=range(args.seeds),
            device=pick_device(args.device),
            amp=args.amp,
            output=args.output,
        )
    )
    if args.output:
        print_end(args.output, f"dp-ldm evaluate --samples {typed(train)} --real FOLDER  # the images themselves")
