"""Take the image features on which a private classifier is trained from public images.

python scripts/public_features.py --yaml configs/benchmark/public-digits.yaml configs/benchmark/public-clothes.yaml \
    --output checkpoints/grey32-features.safetensors
The images are those of each file's data.params.train, which must be public: directions of private images are a query.
"""

from __future__ import annotations

from collections.abc import Sequence

from ldm.cli import ArgumentParser, print_end, run


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and write the feature map."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--yaml", required=True, nargs="+", help="configurations whose training data are public")
    add("--output", required=True, metavar="FILE.safetensors")
    add("--count", type=int, default=6000, help="images of each configuration")
    add("--rank", type=int, default=600, help="number of features")
    add("--whitening", type=float, default=0.5, help="0 keeps the scale of the features, 1 makes all directions alike")
    args = parser.parse_args(argv)

    from ldm.training.private_classifier import public_feature_map, save_feature_map

    features, sources = public_feature_map(args.yaml, args.count, args.rank, args.whitening)
    save_feature_map(features, args.output, f"{args.count} images each of {', '.join(sources)}")
    print_end(
        f"{args.output}: {features.rank} features of {features.channels}x{features.size}x{features.size} images",
        f"in a benchmark file, classifier: {{features: {args.output}}}",
    )


if __name__ == "__main__":
    run(main)
