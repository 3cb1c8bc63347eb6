"""`dp-ldm new`: look at a folder of images and write the YAML file that trains on it privately.

dp-ldm new my-images --epsilon 5
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli import ArgumentParser, print_end, typed
from ldm.errors import UserError
from ldm.files import check_writable

if TYPE_CHECKING:
    from ldm.reports.own_images import Settings
    from ldm.samples.folder_survey import FolderSurvey


def build_parser() -> ArgumentParser:
    """The flags of the command."""
    parser = ArgumentParser(prog="dp-ldm new", description=(__doc__ or "").splitlines()[0].partition(": ")[2])
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="images in subfolders, one a class")
    add("--epsilon", type=float, required=True, help="the privacy budget; your decision, and public")
    add(
        "--output",
        "--out",
        "-o",
        type=Path,
        metavar="YAML",
        help="file to write; FOLDER's name with .yaml, here, without it",
    )
    add("--dataset-size", type=int, metavar="N", help="number of images to declare; the real one rounded up without it")
    add("--grey", action="store_true", help="train on the luminance of colour images")
    add("--public-model", metavar="NAME", help="public model to start from; the first that fits without it")
    add("--weights", type=Path, metavar="FILE", help="a public model that you have trained; the shipped one without it")
    add("--force", action="store_true", help="write over an existing file")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, check the images, print the outlook, and write the YAML file."""
    args = build_parser().parse_args(argv)
    check_numbers(args)
    out = free_output(args)

    from ldm.files import write_text
    from ldm.reports.own_images import yaml_text

    found = look_at(args.folder)
    root = place_in_yaml(out, args.folder)
    check_nameable(root, *found.listing.class_names)
    settings = choose_settings(args, found, out)
    print_outlook(settings, found)
    settings = with_directions(settings, args.weights, out)
    write_text(out, yaml_text(settings, root, found.listing.class_names))
    print_end(out, f"read it, then type dp-ldm train {typed(out)}")


def check_numbers(args: argparse.Namespace) -> None:
    """Raise UserError for an epsilon or a number of images that nobody can mean."""
    if not 0 < args.epsilon < math.inf:
        raise UserError(f"--epsilon {args.epsilon:g}: give a number above 0, such as --epsilon 5")
    if args.dataset_size is not None and args.dataset_size < 1:
        raise UserError(f"--dataset-size {args.dataset_size}: give the number of images that you declare, 1 or more")


def free_output(args: argparse.Namespace) -> Path:
    """The file to write, by default named after the folder of images. Raises UserError where it cannot be written."""
    out: Path = args.output or Path(f"{Path(os.path.abspath(args.folder)).name}.yaml")
    if out.is_dir():
        raise UserError(f"cannot write '{out}': it is a folder; add a file name")
    check_writable(out.absolute().parent, f"--output {out}: folder")
    if out.exists() and not args.force:
        raise UserError(f"{out} exists; name another file with --output, or type --force to write over it")
    return out


def look_at(folder: Path) -> FolderSurvey:
    """Decode and describe the images of a folder with classes. Raises UserError when one of them cannot be read."""
    from ldm.samples.folder_survey import survey

    found = survey(folder)
    print("\n".join([f"folder      {folder}", *found.lines()]))
    if found.unreadable:
        print("unreadable", *found.unreadable, sep="\n  ")
        raise UserError(f"{len(found.unreadable)} files cannot be read (listed above); remove them or fetch them again")
    if found.listing.labels is None:
        raise UserError(f"{folder}: no subfolders; put the images into one for each class, or all into one")
    return found


def place_in_yaml(out: Path, folder: Path) -> str:
    """The folder for the YAML file: relative if it lies below the file's folder, else absolute."""
    place, here = folder.resolve(), out.absolute().parent.resolve()
    return os.path.relpath(place, here) if place.is_relative_to(here) else str(place)


def check_nameable(*names: str) -> None:
    """Raise UserError for a name that a YAML file cannot hold."""
    from ldm.config.written import require_nameable

    for name in names:
        require_nameable(name)


def choose_settings(args: argparse.Namespace, found: FolderSurvey, out: Path) -> Settings:
    """The public model that fits the images, and the settings for their declared number. Raises UserError."""
    from ldm.reports.own_images import Settings, declared_count, fitting_model

    classes, count = len(found.listing.class_names), len(found.listing.files)
    weights = "" if args.weights is None else place_in_yaml(out, args.weights)
    if args.weights is not None and not args.weights.is_file():
        raise UserError(f"--weights {args.weights}: no such file")
    channels = 3 if found.colour and not args.grey else 1
    model = fitting_model(channels, classes, args.public_model, weights)
    size = args.dataset_size or declared_count(count)
    if size < count:
        raise UserError(f"--dataset-size {size}: the folder has more images; declare a number that is not below theirs")
    return Settings.for_size(model, args.epsilon, size, classes)


def print_outlook(settings: Settings, found: FolderSurvey) -> None:
    """Print the public model, what is declared, and what similar runs reached."""
    from ldm.numbers import rounded_up

    model = settings.model
    print(f"start       public model {model.name}: {model.what}")
    if found.sizes.keys() != {(model.size, model.size)}:
        print(f"            images are brought to {model.size}x{model.size}: shorter side resized, the middle cut out")
    budget = f"delta {rounded_up(settings.delta, 6)}, epsilon {rounded_up(settings.epsilon, 6)}"
    print(f"declared    {settings.dataset_size:,} images, {budget}, and the class names:")
    print("            these are public statements of yours, which epsilon does not protect; read them in the file")
    print("\n".join(settings.outlook()))


def with_directions(settings: Settings, weights: Path | None, out: Path) -> Settings:
    """The settings with a file of public directions beside ``out``, made for the user's own public model if needed."""
    moments = settings.model.moments
    if moments is None or moments.frame or weights is None:
        return settings
    from ldm.reports.own_frame import write_frame

    settings, frame = write_frame(settings, weights, out)
    print(f"directions  written to {frame.name}, from public collages")
    return settings
