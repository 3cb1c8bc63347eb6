"""Feature statistics of a sample file, for fid/compute_fid.py.

python fid/compute_samples_stats.py --samples celeba32_samples.pt --output celeba32_samples.npz
"""

from __future__ import annotations

from collections.abc import Sequence

from ldm.cli import ArgumentParser, pick_device, run


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--samples", required=True, metavar="FILE", help="sample file (.pt with `image`, or .npz with `x`)")
    add("--output", required=True, metavar="FILE.npz", help="statistics file to write")
    add("--batch_size", type=int, default=500, help="pictures a batch")
    add("--extractor", default="inception", help="inception (FID), or the stand-ins digits-cnn, pixels")
    add("--weights", metavar="FILE", help="weights of the extractor; inception downloads its own without it")
    add("--quantize", action="store_true", help="round pixels to 8 bits first, as picture files do")
    add("--device", help="cpu, cuda, cuda:1 ...; a GPU when there is one")
    args = parser.parse_args(argv)

    from ldm.evaluation.features import make_extractor
    from ldm.evaluation.sources import require_writable, sample_batches
    from ldm.evaluation.statistics import compute_statistics
    from ldm.samples import SampleSet

    require_writable(args.output)
    samples = SampleSet.load(args.samples)
    extractor = make_extractor(args.extractor, weights=args.weights, device=pick_device(args.device))
    statistics = compute_statistics(
        sample_batches(samples, args.batch_size), extractor, quantize=args.quantize, source=str(args.samples)
    )
    statistics.save(args.output)
    print(f"{args.output}: {statistics.count} pictures, {extractor.dim} {extractor.name} features")


if __name__ == "__main__":
    run(main)
