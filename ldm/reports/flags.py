"""Groups of flags that several commands share, so that one flag has one spelling, one default and one help text.

The module imports no heavy packages, so that `--help` is fast.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

from ldm.cli import ArgumentParser, pick_device
from ldm.files import DOWNLOAD_VARIABLE

EXTRACTORS = "inception (FID), efficientnet-lite0, digits-cnn, pixels, or a dotted class"


def add_device_flag(parser: ArgumentParser) -> None:
    """--device; `ldm.cli.pick_device` reads it."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ...; a GPU when there is one")


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


def add_sampling_flags(parser: ArgumentParser, *, batch_size: int = 500) -> None:
    """Sampling settings of a class-conditional model, in the spellings of the published commands."""
    add = parser.add_argument
    add("--ddim_step", "-step", "--ddim_steps", type=int, default=200)
    add("--eta", "-eta", type=float, default=1.0, help="0 deterministic, 1 ancestral noise")
    add("--scale", "-scale", type=float, default=1.0, help="guidance scale; 1 is none")
    add("--uc", type=int, default=None, help="class that stands for no condition in guidance; default: the null class")
    add("--batch_size", "-bs", type=int, default=batch_size, help="images sampled at a time")


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
    args: argparse.Namespace, protocol: Any, classifiers: Sequence[str], train: str, held_out: str | None = None
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
            seeds=range(args.seeds),
            device=pick_device(args.device),
            amp=args.amp,
            output=args.output,
        )
    )
