"""`dp-ldm export`: samples or a trained model in the form of another program.

dp-ldm export samples.pt gen.npz                 DPImageBench's form: x uint8 (N, H, W, C), y
dp-ldm export samples.pt images/                 PNG files in a folder for each class
dp-ldm export samples.pt samples.parquet         as data sets lie on the Hugging Face hub
dp-ldm export release/ hub/                      README with the hub's header, and the release
dp-ldm export logs/RUN adapter/ --to peft        adapters as the PEFT library saves them
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ldm.cli import ArgumentParser
from ldm.errors import UserError

FORMS = ("npz", "images", "parquet", "hub", "peft")


def build_parser() -> ArgumentParser:
    """The flags of the command."""
    parser = ArgumentParser(
        prog="dp-ldm export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("source", type=Path, metavar="WHAT", help="sample file, release folder, run directory or checkpoint")
    add("out", type=Path, metavar="OUT", help="new file or folder")
    add("--to", choices=FORMS, help="the form; told from WHAT and OUT without it")
    add(
        "--class-names",
        nargs="*",
        default=[],
        metavar="NAME",
        help="names of the classes; the file's without it",
    )
    add("--base-model", default="", metavar="NAME", help="hub: name of the public model there")
    add("--datasets", nargs="*", default=[], metavar="NAME", help="hub: names of public data sets there")
    add("--alpha", type=float, help="peft: LoRA's alpha, for a file that does not state its scaling")
    add("--ema", action=argparse.BooleanOptionalAction, default=True, help="peft: averaged weights if there are any")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and write."""
    args = build_parser().parse_args(argv)
    form = args.to or likely_form(args.source, args.out)
    if form in ("npz", "images", "parquet"):
        follow = _export_samples(args, form)
    elif form == "hub":
        follow = _export_hub(args)
    else:
        follow = _export_peft(args)
    print(f"written to {args.out}")
    print(f"next: {follow}")


def likely_form(source: Path, out: Path) -> str:
    """The format that the two file names imply. Raises UserError when they are ambiguous."""
    if source.suffix in (".pt", ".npz"):
        return {".npz": "npz", ".parquet": "parquet"}.get(out.suffix, "images")
    if (source / "release.json").is_file():
        return "hub"
    if source.is_dir() and (source / "checkpoints").is_dir():
        return "peft"
    raise UserError(f"{source}: cannot tell what to write; type --to and one of {', '.join(FORMS)}")


def _export_samples(args: argparse.Namespace, form: str) -> str:
    from ldm.samples import SampleSet, class_names_in
    from ldm.samples.export import write_folder, write_npz, write_parquet

    if form != "images" and args.out.suffix != f".{form}":
        raise UserError(f"{args.out}: end the name in .{form}")
    samples = SampleSet.load(args.source)
    names = args.class_names or class_names_in(samples.meta, args.source)
    if form == "npz":
        write_npz(samples, args.out)
        return "give its folder to DPImageBench's eval.py"
    if form == "parquet":
        write_parquet(samples, args.out, names)
        return "upload it as a data set, or read it with any Parquet reader"
    write_folder(samples, args.out, args.class_names or [name.replace("/", "-").replace("\\", "-") for name in names])
    return f"dp-ldm evaluate --samples {args.out} --real FOLDER (images of the same size)"


def _export_hub(args: argparse.Namespace) -> str:
    from ldm.reports.hub import INSIDE, export_hub

    export_hub(args.source, args.out, args.base_model, tuple(args.datasets))
    return f"dp-ldm verify {args.out / INSIDE}, then upload {args.out} with the hub's own client"


def _export_peft(args: argparse.Namespace) -> str:
    from ldm.checkpoint.peft_export import export_peft

    source = args.source / "checkpoints" / "last.ckpt" if args.source.is_dir() else args.source
    export_peft(source, args.out, args.ema, args.alpha)
    return f"read it with PEFT, or pass {args.out} wherever a checkpoint with adapters is taken"
