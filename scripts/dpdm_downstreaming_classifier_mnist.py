"""Downstream accuracy: train classifiers on generated images and score them on real ones.

python scripts/dpdm_downstreaming_classifier_mnist.py --train generated.pt --test real_test.pt
python scripts/dpdm_downstreaming_classifier_mnist.py --train generated.pt --test ldm.data.mnist.MNISTVal
    --protocol dpimagebench --models wrn-40-4 resnet-110 resnext-29     (the three of DPImageBench, their mean and best)
"""

from __future__ import annotations

from collections.abc import Sequence

from ldm.cli import ArgumentParser, run
from ldm.reports.flags import add_classifier_flags, add_dataset_flags, print_scores


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, train and score, and print the accuracies."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--train", required=True, metavar="FILE", help="generated images with labels (.pt or .npz)")
    real = "real images with labels, of the size of --train: a file, or a dotted dataset class"
    add_dataset_flags(parser, "test", real, required=True, metavar="FILE|CLASS")
    held = "images that choose the epoch: generated ones, one sixth of --train without it; real ones by a protocol"
    add_dataset_flags(parser, "val", held, metavar="FILE|CLASS")
    add("--models", nargs="+", default=["logreg", "mlp", "cnn"], help="classifiers to train")
    add("--protocol", default="dp-ldm", help="how they are trained and the epoch is chosen, by a published name")
    add("--augment", action="store_true", help="shift and rotate training images a little")
    add_classifier_flags(parser)
    args = parser.parse_args(argv)

    from ldm.evaluation.classifiers.protocols import protocol_named

    protocol = protocol_named(args.protocol).changed(
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        augment=("jitter",) if args.augment else None,
    )
    print_scores(args, protocol, args.models, args.train, args.val)


if __name__ == "__main__":
    run(main)
