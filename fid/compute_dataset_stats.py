"""Feature statistics of a real dataset, for fid/compute_fid.py.

python fid/compute_dataset_stats.py --dataset ldm.data.celeba.CelebATrain --args size:32 --output celeba32.npz
"""

from __future__ import annotations

from collections.abc import Sequence

from ldm.cli import ArgumentParser, pick_device, print_end, print_part_end, run, typed
from ldm.reports.flags import add_device_flag, add_download_flag, add_extractor_flags, add_shard_flag
from ldm.samples.shards import Shard


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, compute the statistics, or this process's part of them, and write them."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--dataset", required=True, help="dataset class, such as ldm.data.mnist.MNISTTrain, or a folder of images")
    add(
        "--args", nargs="*", default=[], metavar="KEY:VALUE", help="its arguments; size:32 and config.size:32 both work"
    )
    add("--output", required=True, metavar="FILE.npz", help="statistics file to write")
    add("--batch_size", type=int, default=500, help="images a batch")
    add("--num_workers", type=int, default=0, help="loader processes")
    add_extractor_flags(parser)
    add("--quantize", action="store_true", help="round pixels to 8 bits first, as image files do")
    add_shard_flag(parser)
    add_download_flag(parser)
    add_device_flag(parser)
    args = parser.parse_args(argv)

    from ldm.evaluation.features import make_extractor
    from ldm.evaluation.inputs.image_source import open_images
    from ldm.evaluation.metrics.statistics_files import write_statistics
    from ldm.files import require_writable

    require_writable(args.output)
    dataset = open_images(args.dataset, args.args, num_workers=args.num_workers)
    extractor = make_extractor(args.extractor, weights=args.weights, device=pick_device(args.device))
    options = {"batch_size": args.batch_size, "quantize": args.quantize, "shard": Shard.here(args.shard)}
    statistics = write_statistics(dataset, extractor, args.output, **options)
    if statistics is None:
        print_part_end(args.output)
        return
    print_end(
        f"{args.output}: {statistics.count} images, {len(statistics.mu)} {extractor.name} features",
        f"python fid/compute_fid.py --path1 {typed(args.output)} --path2 SAMPLES",
    )


if __name__ == "__main__":
    run(main)
