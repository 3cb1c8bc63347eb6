"""Do samples copy private images? Nearest private images of samples, and the share of near-copies beside chance's.

python scripts/nearest_neighbours.py --samples samples.pt --private ldm.data.mnist.MNISTTrain \
    --held_out ldm.data.mnist.MNISTVal --picture pairs.png --i-hold-the-private-data
The figures are computed from private images, and no guarantee covers them: show them to the images' holders only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ldm.cli import ArgumentParser, pick_device, print_end, run, seed
from ldm.reports.flags import add_dataset_flags, add_device_flag, add_extractor_flags


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--samples", required=True, metavar="FILE", help="generated images (.pt or .npz)")
    kinds = {"required": True, "metavar": "CLASS|FILE|FOLDER"}
    add_dataset_flags(parser, "private", "private images the model was fine-tuned on", **kinds)
    add_dataset_flags(parser, "held_out", "images of the same kind that it never saw", **kinds)
    add_extractor_flags(parser, default=None)
    add("--quantile", type=float, default=0.05, help="of held-out distances, below which a sample is a near-copy")
    add("--count", type=int, default=2000, help="samples and held-out images looked at, chosen at random")
    add("--batch_size", "-bs", type=int, default=500, help="images at a time")
    add("--seed", type=seed, default=0, help="choice of images")
    add("--picture", metavar="FILE.png", help="draw the nearest pairs; PRIVATE goes into the name and the image")
    add("--pairs", type=int, default=40, help="pairs in the image")
    add(
        "--i-hold-the-private-data",
        "--i_hold_the_private_data",
        action="store_true",
        help="the private images are yours to see, and the image goes nowhere else",
    )
    add("--output", metavar="FILE.json", help="write all numbers")
    add_device_flag(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, write and print."""
    args = _parser().parse_args(argv)

    from ldm.evaluation.features import make_extractor
    from ldm.evaluation.inputs.image_source import open_images
    from ldm.evaluation.leakage.neighbours import (
        NOT_COVERED,
        look_for_copies,
        raw_pixels,
        require_holder,
        save_pairs,
        some,
        take,
    )
    from ldm.files import write_text
    from ldm.inference import check_output
    from ldm.samples import SampleSet

    if args.picture:
        require_holder(args.i_hold_the_private_data)
        check_output(args.picture, (".png",))
    if args.output:
        check_output(args.output, (".json",))
    device = pick_device(args.device)
    samples = some(SampleSet.load(args.samples).images, args.count, args.seed)
    spaces = {"pixels, root mean square": raw_pixels(samples.shape[-1], samples.shape[1])}
    if args.extractor:
        spaces[args.extractor] = make_extractor(args.extractor, weights=args.weights, device=device)
    private = open_images(args.private, args.private_args)
    held_out = open_images(args.held_out, args.held_out_args)
    sizes = {"count": args.count, "batch_size": args.batch_size, "seed": args.seed, "device": device}
    results = []
    print(NOT_COVERED)
    for space, rows in spaces.items():
        result, found = look_for_copies(samples, private, held_out, rows, space=space, quantile=args.quantile, **sizes)
        print(result)
        results.append(result)
    if args.picture:  # of the last, most discriminative space
        order = found.distances[:, 0].argsort()[: args.pairs]
        images = take(private, found.indices[order, 0], args.batch_size)
        name = save_pairs(
            samples[order],
            images,
            found.distances[order, 0],
            args.picture,
            holds_private_data=args.i_hold_the_private_data,
        )
        print(f"{name}: shows private images")
    if args.output:
        write_text(args.output, json.dumps([result.to_dict() for result in results], indent=2))
    written = [str(path) for path in (args.picture, args.output) if path]
    if written:
        print_end(", ".join(written), "keep it where the private images are; epsilon does not cover it")


if __name__ == "__main__":
    run(main)
