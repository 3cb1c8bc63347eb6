"""Accuracy on real CIFAR-10 images of a small CNN trained on samples, as in the DP-LoRA study.

python scripts/cifar_downstream.py --train samples.pt
python scripts/cifar_downstream.py --train samples.pt --selection best-test-epoch     (as published)
"""

from __future__ import annotations

from collections.abc import Sequence

from ldm.cli import ArgumentParser, run
from ldm.reports.flags import add_classifier_flags, add_dataset_flags, print_scores


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, train and score, and print the accuracies."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--train", default="samples.pt", metavar="FILE", help="generated images with labels (.pt or .npz)")
    real = "real images with labels: a file, or a dotted dataset class"
    add_dataset_flags(parser, "test", real, default="ldm.data.cifar10.CIFAR10Val", metavar="FILE|CLASS")
    add("--val", metavar="FILE", help="held-out generated images; without it one sixth of --train is held out")
    add("--selection", default="held-out", help="epoch that counts: held-out, last, best-test-epoch as published")
    add("--models", nargs="+", default=["cnn"], help="classifiers to train")
    add_classifier_flags(parser, epochs=200, batch_size=1024, lr=1e-3)
    args = parser.parse_args(argv)

    from ldm.evaluation.classifiers.protocols import protocol_named

    protocol = protocol_named("dp-lora").changed(
        selection=args.selection, epochs=args.epochs, batch_size=args.batch_size, lr=args.lr
    )
    print_scores(args, protocol, args.models, args.train, args.val)


if __name__ == "__main__":
    run(main)
