"""Train one classifier on samples and score it on real images: the options of DP-LDM's accuracy/train_classifier.py.

python scripts/train_classifier.py --train_data samples.pt --val_data ldm.data.cifar10.CIFAR10Val --model wrn_40_4
The epoch is chosen on held-out samples; --selection best-test-epoch chooses it on --val_data, as published.
"""

from __future__ import annotations

import ast
import logging
from collections.abc import Sequence
from typing import Any

from ldm.cli import ArgumentParser, pick_device, print_end, run, seed, typed
from ldm.reports.flags import add_device_flag, add_download_flag


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--train_data", required=True, metavar="FILE", help="generated images with labels (.pt)")
    add("--val_data", required=True, metavar="CLASS|FILE", help="real images: a dotted dataset class, or a file")
    add("--val_data_args", default="{}", metavar="DICT", help="arguments of the class, such as \"{'size': 32}\"")
    add("--held_out", metavar="FILE", help="samples that choose the epoch; else one sixth of --train_data")
    add("--selection", default="held-out", help="epoch that counts: held-out, last, best-test-epoch as published")
    add("--model", required=True, help="cnn, mlp, wrn_40_4, logreg, resnet_9, resnet_110, resnext")
    add("--num_classes", type=int, default=10, help="outputs of the classifier")
    add("--image_channels", type=int, default=3, choices=(1, 3), help="channels the classifier sees")
    add("--num_epochs", type=int, default=200, help="passes through the samples")
    add("--batch_size", "--bs", type=int, default=128, help="images a step")
    add("--val_batch_size", "--val_bs", type=int, help="images scored at a time; as --batch_size")
    add("--learning_rate", "--lr", type=float, default=0.1, help="first learning rate of SGD with momentum")
    add("--lr_anneal_period", "--T_0", type=int, default=10, help="epochs of the first cosine cycle; 0 for none")
    add("--lr_anneal_mult", "--T_mult", type=int, default=2, help="growth of the cycles")
    add("--ema_beta", type=float, default=0.9999, help="decay of the averaged weights; 0 for none")
    add("--quiet", action="store_true", help="no progress bar, warnings only")
    add("--val_period", type=int, default=1, help="epochs between two scores")
    add("--output", metavar="FILE.pt", help="write losses and accuracies of all epochs")
    add("--seed", type=seed, default=21, help="initial weights, order and augmentation")
    add("--amp", action="store_true", help="compute in bfloat16 where that is safe")
    add_download_flag(parser)
    add_device_flag(parser)
    return parser


def _words(text: str) -> list[str]:
    """Convert the published dict to the `key:value` arguments of the other commands."""
    from ldm.errors import UserError

    try:
        value = ast.literal_eval(text)
        return _flat(value)
    except (ValueError, SyntaxError, AttributeError):
        raise UserError(f"--val_data_args {text!r} is not a dict of plain values, such as \"{{'size': 32}}\"") from None


def _flat(settings: dict[str, Any], prefix: str = "") -> list[str]:
    words = []
    for key, value in settings.items():
        if isinstance(value, list | tuple | set):
            raise ValueError
        words += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}:{value}"]
    return words


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, train, print the chosen epochs and write the curves."""
    args = _parser().parse_args(argv)

    from ldm.evaluation.classifiers.downstream import hold_out, train_classifier
    from ldm.evaluation.classifiers.downstream_files import write_curves
    from ldm.evaluation.classifiers.protocols import HELD_OUT, protocol_named
    from ldm.evaluation.inputs.images import to_rgb
    from ldm.evaluation.inputs.sources import load_labelled
    from ldm.files import require_writable
    from ldm.samples import SampleSet

    if args.quiet:
        logging.getLogger().setLevel(logging.WARNING)
    if args.output:
        require_writable(args.output)
    protocol = protocol_named("best-test-epoch").changed(
        selection=args.selection,
        epochs=args.num_epochs,
        batch_size=args.batch_size,
        scoring_batch=args.val_batch_size or args.batch_size,
        lr=args.learning_rate,
        anneal_period=args.lr_anneal_period,
        anneal_mult=args.lr_anneal_mult,
        ema_decay=args.ema_beta,
        validation_period=args.val_period,
        grey=args.image_channels == 1,
    )
    train, held_out = SampleSet.load(args.train_data, need_labels=True), None
    if args.image_channels == 3:
        train = SampleSet(to_rgb(train.images), train.labels)
    if protocol.selection == HELD_OUT:
        train, held_out = (train, SampleSet.load(args.held_out, need_labels=True)) if args.held_out else hold_out(train)
    real = load_labelled(args.val_data, _words(args.val_data_args), size=train.images.shape[-1])
    result = train_classifier(
        args.model,
        train,
        held_out,
        real,
        protocol,
        seed=args.seed,
        device=pick_device(args.device),
        amp=args.amp,
        num_classes=args.num_classes,
        progress=not args.quiet,
    )
    print(f"accuracy on {len(real)} real images, {protocol.note}")
    print(f"Model: epoch {result.best_epoch - 1:03}: {result.accuracy:.3f}")  # epochs count from 0, as in the file
    if result.average_accuracy is not None and result.average_epoch is not None:
        print(f"EMA  : epoch {result.average_epoch - 1:03}: {result.average_accuracy:.3f}")
    if args.output:
        write_curves(result, args.output)
        print_end(
            args.output,
            f"dp-ldm evaluate --samples {typed(args.train_data)} --real FOLDER  # the images themselves",
        )


if __name__ == "__main__":
    run(main)
