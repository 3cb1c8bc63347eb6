"""`dp-ldm export`: samples or a trained model in the form of another program.

dp-ldm export samples.pt gen.npz                 DPImageBench's form: x uint8 (N, H, W, C), y
dp-ldm export samples.pt images/                 PNG files in a folder for each class
dp-ldm export samples.pt samples.parquet         as data sets lie on the Hugging Face hub
dp-ldm export samples.pt shards --to webdataset  tar shards of PNG files and labels
dp-ldm export release/ hub/                      README with the hub's header, and the release
dp-ldm export release/ papers/ --to disclosure   registry entry, label, NIST SP 800-226 checklist
dp-ldm export release/ pipeline/ --to diffusers  what DiffusionPipeline.from_pretrained opens
dp-ldm export vae/ autoencoder/ --to first-stage an autoencoder of diffusers for a YAML file here
dp-ldm export logs/RUN adapter/ --to peft        adapters as the PEFT library saves them
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ldm.cli import ArgumentParser, print_end, typed
from ldm.errors import UserError

SAMPLE_FORMS = ("npz", "images", "parquet", "webdataset")
FORMS = (*SAMPLE_FORMS, "hub", "disclosure", "diffusers", "first-stage", "peft")
#: Endings of files that this command does not write: a folder with such a name would be taken for one.
OTHER_FILES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".tif", ".zip", ".tar", ".csv", ".json", ".pt")


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
    add("--yaml", type=Path, metavar="FILE", help="diffusers: configuration, for WHAT that is a checkpoint alone")
    add("--ema", action=argparse.BooleanOptionalAction, default=True, help="models: averaged weights if there are any")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and write."""
    args = build_parser().parse_args(argv)
    form = args.to or likely_form(args.source, args.out)
    if form in SAMPLE_FORMS:
        follow = _export_samples(args, form)
    else:
        follow = {
            "hub": _export_hub,
            "disclosure": _export_disclosure,
            "diffusers": _export_diffusers,
            "first-stage": _import_first_stage,
            "peft": _export_peft,
        }[form](args)
    print_end(args.out, follow)


def likely_form(source: Path, out: Path) -> str:
    """The format that the two file names imply. Raises UserError when they are ambiguous."""
    if out.suffix.lower() in OTHER_FILES:
        raise UserError(f"{out}: cannot tell what to write; name a folder, or a file that ends in .npz or .parquet")
    if source.suffix in (".pt", ".npz"):
        return {".npz": "npz", ".parquet": "parquet"}.get(out.suffix, "images")
    if (source / "release.json").is_file():
        return "hub"
    if source.is_dir() and (source / "checkpoints").is_dir():
        return "peft"
    raise UserError(f"{source}: cannot tell what to write; type --to and one of {', '.join(FORMS)}")


def _export_samples(args: argparse.Namespace, form: str) -> str:
    from ldm.privacy.validate import is_line
    from ldm.samples import SampleSet, class_names_in
    from ldm.samples.export import write_folder, write_npz, write_parquet
    from ldm.samples.webdataset import write_webdataset

    if form in ("npz", "parquet") and args.out.suffix != f".{form}":
        raise UserError(f"{args.out}: end the name in .{form}")
    samples = SampleSet.load(args.source)
    names = args.class_names or class_names_in(samples.meta, args.source)
    for name in names:
        if not is_line(name):
            raise UserError(f"class name {name!r} is not one line of text; give others with --class-names")
    if form == "npz":
        write_npz(samples, args.out)
        return "give its folder to DPImageBench's eval.py"
    if form == "parquet":
        write_parquet(samples, args.out, names)
        return "upload it as a data set, or read it with any Parquet reader"
    if form == "webdataset":
        shards = write_webdataset(samples, args.out, names)
        return f"read the {len(shards)} shards with webdataset, or with any program that reads tar"
    write_folder(samples, args.out, args.class_names or [name.replace("/", "-").replace("\\", "-") for name in names])
    return f"dp-ldm evaluate --samples {typed(args.out)} --real FOLDER  # images of the same size"


def _export_hub(args: argparse.Namespace) -> str:
    from ldm.reports.hub import INSIDE, export_hub

    export_hub(args.source, args.out, args.base_model, tuple(args.datasets))
    return f"dp-ldm verify {typed(args.out / INSIDE)}  # then upload {args.out} with the hub's own client"


def _export_disclosure(args: argparse.Namespace) -> str:
    from ldm.reports.disclosure import OPEN, export_disclosure

    export_disclosure(args.source, args.out)
    return f"read the three files, and fill in what they leave open ({OPEN!r})"


def _export_diffusers(args: argparse.Namespace) -> str:
    from ldm.reports.diffusers.export import export_diffusers
    from ldm.reports.model_files import ModelFiles
    from ldm.reports.release import check_releasable, release_documents
    from ldm.reports.sample_source import SampleSource

    check_releasable(args.source)
    files = ModelFiles(args.yaml, args.source) if args.yaml else ModelFiles.find(args.source)
    names, notes = args.class_names or files.class_names, release_documents(args.source)
    statistics = None if files.draws is None else (files.draws, SampleSource.choose(files).source)
    parts = export_diffusers(files.config, files.weights, args.out, names, args.ema, notes, statistics)
    own = sorted(part.name for part in parts.values() if part.module != "diffusers")
    print("parts       " + ", ".join(f"{name}/ {part.name}" for name, part in parts.items()))
    if own:
        print(f"            {', '.join(own)}: small classes, whose code lies in the folder")
    if statistics is not None:
        other = "model" if statistics[1] == "draws" else "draws"
        print(f"source      {statistics[1]}, unless pipeline(..., source={other!r}) is called")
    return f"DiffusionPipeline.from_pretrained('{args.out}', trust_remote_code=True)"


def _import_first_stage(args: argparse.Namespace) -> str:
    from ldm.reports.diffusers.first_stage import OUT_YAML, import_autoencoder

    import_autoencoder(args.source, args.out)
    return f"copy the section of {args.out / OUT_YAML} into first_stage_config of a latent diffusion model"


def _export_peft(args: argparse.Namespace) -> str:
    from ldm.checkpoint.peft_export import export_peft

    source = args.source / "checkpoints" / "last.ckpt" if args.source.is_dir() else args.source
    export_peft(source, args.out, args.ema, args.alpha)
    return f"read it with PEFT, or pass {args.out} wherever a checkpoint with adapters is taken"
