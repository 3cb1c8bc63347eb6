"""Frechet distance between two image sets or their statistics files; called FID only for Inception features.

python fid/compute_fid.py --path1 celeba32_train.npz --path2 celeba32_samples.npz
python fid/compute_fid.py --path1 celeba32_train.npz --path2 celeba32_samples.pt
"""

from __future__ import annotations

from collections.abc import Sequence

from ldm.cli import ArgumentParser, pick_device, run
from ldm.reports.flags import add_device_flag, add_download_flag, add_extractor_flags


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and print the distance."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    kinds = "a statistics .npz, or images: .pt, .npz, a folder, a dotted dataset class"
    add("--path1", required=True, metavar="REAL", help=f"real images: {kinds}")
    add("--path2", required=True, metavar="SAMPLES", help="generated images: any of the same")
    add("--args", nargs="*", default=[], metavar="KEY:VALUE", help="arguments of a dataset class, such as size:32")
    add_extractor_flags(parser)
    add("--quantize", action="store_true", help="round pixels to 8 bits first, as image files do")
    add("--batch_size", type=int, default=500, help="images a batch")
    add_download_flag(parser)
    add_device_flag(parser)
    add("--force", action="store_true", help="compare although the features were made differently")
    args = parser.parse_args(argv)

    from ldm.evaluation.metrics.statistics import compare, describe
    from ldm.evaluation.metrics.statistics_files import statistics_of

    options = {"extractor": args.extractor, "weights": args.weights, "quantize": args.quantize}
    options |= {"batch_size": args.batch_size, "device": pick_device(args.device)}
    first, second = (statistics_of(path, args.args, **options) for path in (args.path1, args.path2))
    distance = compare(first, second, force=args.force)
    print(f"{describe(first, second)}: {distance:.4f}")


if __name__ == "__main__":
    run(main)
