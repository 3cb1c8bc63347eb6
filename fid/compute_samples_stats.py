"""Feature statistics of a sample file or a folder of images, for fid/compute_fid.py.

python fid/compute_samples_stats.py --samples celeba32_samples.pt --output celeba32_samples.npz
"""

from __future__ import annotations

from collections.abc import Sequence

from ldm.cli import ArgumentParser, pick_device, print_end, print_part_end, run, typed
from ldm.reports.flags import add_device_flag, add_extractor_flags, add_shard_flag
from ldm.samples.shards import Shard


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, compute the statistics, or this process's part of them, and write them."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--samples", required=True, metavar="FILE|FOLDER", help=".pt with `image`, .npz with `x`, or image files")
    add("--output", required=True, metavar="FILE.npz", help="statistics file to write")
    add("--batch_size", type=int, default=500, help="images a batch")
    add_extractor_flags(parser)
    add("--quantize", action="store_true", help="round pixels to 8 bits first, as image files do")
    add_shard_flag(parser)
    add_device_flag(parser)
    args = parser.parse_args(argv)

    from ldm.evaluation.features import make_extractor
    from ldm.evaluation.inputs.image_source import open_images
    from ldm.evaluation.metrics.statistics_files import write_statistics
    from ldm.files import require_writable

    require_writable(args.output)
    samples = open_images(args.samples)
    extractor = make_extractor(args.extractor, weights=args.weights, device=pick_device(args.device))
    options = {"batch_size": args.batch_size, "quantize": args.quantize, "shard": Shard.here(args.shard)}
    statistics = write_statistics(samples, extractor, args.output, **options)
    if statistics is None:
        print_part_end(args.output)
        return
    print_end(
        f"{args.output}: {statistics.count} images, {len(statistics.mu)} {extractor.name} features",
        f"python fid/compute_fid.py --path1 REAL.npz --path2 {typed(args.output)}",
    )


if __name__ == "__main__":
    run(main)
