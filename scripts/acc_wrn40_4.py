"""Accuracy on real CIFAR-10 images of a WRN-40-4 trained on samples (.npz with x (N, H, W, C) and y, or .pt).

python scripts/acc_wrn40_4.py samples.npz
python scripts/acc_wrn40_4.py samples.npz --test real_test.pt --seeds 3 --output wrn.json
"""

from __future__ import annotations

from collections.abc import Sequence

from ldm.cli import ArgumentParser, run
from ldm.reports.flags import add_classifier_flags, add_dataset_flags, print_scores


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, train and score, and print the accuracies."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("data", nargs="?", default="samples.npz", metavar="FILE", help="generated images with labels")
    real = "real images with labels: a file, or a dotted dataset class"
    add_dataset_flags(parser, "test", real, default="ldm.data.cifar10.CIFAR10Val", metavar="FILE|CLASS")
    add("--selection", default="last", help="epoch that counts: last as published, held-out, best-test-epoch")
    add_classifier_flags(parser, epochs=10, batch_size=1000, lr=0.1)
    args = parser.parse_args(argv)

    from ldm.evaluation.classifiers.protocols import protocol_named

    protocol = protocol_named("wrn40-4").changed(
        selection=args.selection, epochs=args.epochs, batch_size=args.batch_size, lr=args.lr
    )
    print_scores(args, protocol, ["wrn-40-4"], args.data)


if __name__ == "__main__":
    run(main)
