"""`dp-ldm evaluate`: generated images against real ones: every score that applies, one JSON file, one page to look at.

dp-ldm evaluate --samples samples.pt --real ldm.data.mnist.MNISTTrain --suite mnist --output report
torchrun --nproc-per-node 2 scripts/evaluate.py --samples samples.pt --real ldm.data.mnist.MNISTTrain --suite mnist
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from ldm.cli import ArgumentParser, pick_device, print_end, seed
from ldm.reports.flags import add_dataset_flags, add_device_flag, add_extractor_flags
from ldm.samples.shards import Shard


def build_parser(prog: str = "dp-ldm evaluate") -> ArgumentParser:
    """The flags of the evaluation."""
    parser = ArgumentParser(prog=prog, description=(__doc__ or "").splitlines()[0].partition(": ")[2])
    add = parser.add_argument
    add("--samples", required=True, metavar="FILE|FOLDER", help="generated images: .pt, .npz or an image folder")
    kinds = {"metavar": "CLASS|FILE|FOLDER"}
    add_dataset_flags(parser, "real", "real images; a dotted class gets the samples' size", required=True, **kinds)
    add("--suite", default="all", help="mnist, cifar10, celeba or all: scores, classifiers and class names")
    add("--output", metavar="FOLDER", help="where the results go; outputs/evaluation/NAME without it")
    add("--title", help="heading of the page; the name of the sample file without it")
    add_extractor_flags(parser)
    add(
        "--quantize",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="round pixels to 8 bits first, as image files do",
    )
    add_dataset_flags(parser, "test", "held-out real images: they score classifiers, and stand beside copies", **kinds)
    add("--public", metavar="FILE|FOLDER", help="samples of the public model: what every score is read beside")
    add("--real_level", action="store_true", help="measure --test in the samples' place too: what real images score")
    add("--classifiers", nargs="+", help="classifiers to train, such as cnn wrn-40-4; the suite's without it")
    add("--protocol", default="held-out", help="how they are trained and which epoch counts")
    add("--epochs", type=int, help="epochs of every classifier; the protocol's without it")
    add("--seeds", type=int, default=1, help="how many times to train every classifier")
    add("--privacy", metavar="RUN|FILE", help="run directory with a privacy.json, or that file")
    add("--show_real", action="store_true", help="put real images on the page; then keep it as private as they are")
    add(
        "--memorisation",
        nargs="*",
        metavar="JSON",
        help="look for copies of real images (private); files of scripts/membership.py are shown too",
    )
    add("--subset", type=int, default=10_000, help="images a side for KID, precision, recall, density and coverage")
    add("--kid_subset_size", type=int, default=1000, help="images of each of the 100 draws of KID")
    add("--neighbours", type=int, default=3, help="of precision and recall")
    add("--density_neighbours", type=int, default=5, help="of density and coverage")
    add("--seed", type=seed, default=0, help="which images the subsets hold")
    add("--batch_size", type=int, default=250, help="images a batch")
    add("--num_workers", type=int, default=0, help="loader processes for --real")
    add("--force", action="store_true", help="compare although the two sides were made differently")
    add_device_flag(parser)
    return parser


def main(argv: Sequence[str] | None = None, prog: str = "dp-ldm evaluate") -> None:
    """Parse the command line, measure, write and print; of several processes of torchrun the first one writes."""
    args = build_parser(prog).parse_args(argv)
    first = Shard.here().first
    if not first:  # the others would say everything once more
        os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported, with torch
        logging.getLogger().setLevel(logging.WARNING)

    from ldm.evaluation.metrics.suite import MeasureOptions
    from ldm.evaluation.metrics.summary import SummaryOptions
    from ldm.evaluation.processes import connected
    from ldm.reports.evaluation import EvaluationRequest, evaluate
    from ldm.reports.evaluation_files import check_output_folder, format_result, write_evaluation

    folder = Path(args.output or Path("outputs") / "evaluation" / Path(args.samples).stem)
    if first:
        check_output_folder(folder)
    given = {field.name for field in fields(EvaluationRequest)} - {"summary", "measure"}
    request = EvaluationRequest(
        **{name: getattr(args, name) for name in given},
        summary=SummaryOptions(quantize=args.quantize, subset=args.subset, seed=args.seed),
        measure=MeasureOptions(
            kid_subset_size=args.kid_subset_size,
            neighbours=args.neighbours,
            density_neighbours=args.density_neighbours,
            seed=args.seed,
            force=args.force,
        ),
    )
    with connected() as processes:
        evaluation = evaluate(request, pick_device(args.device), processes)
    if not first:
        return
    write_evaluation(evaluation.result, evaluation.images, folder)
    print(format_result(evaluation.result))
    print_end(f"{folder}: evaluation.json, report.html, samples.png", f"open {folder / 'report.html'} in a browser")
