"""Sample a class-conditional model and score classifiers trained on the samples: sampling and accuracy in one go.

python scripts/mnist_sampling_and_acc.py --yaml config.yaml --ckpt last.ckpt
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ldm.cli import ArgumentParser, pick_device, print_end, run, seed, typed
from ldm.reports.flags import (
    add_device_flag,
    add_download_flag,
    add_model_flags,
    add_sampling_flags,
    sampling_options,
)

REAL = "ldm.data.mnist.MNISTVal"


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add_model_flags(parser, "-ckpt", "--ckpt_path")
    add("--num_train", type=int, default=50000, help="samples that train the classifiers, class by class")
    add("--num_eval", type=int, default=10000, help="further samples, which choose the epoch")
    add("--classes", "-c", nargs="+", type=int, default=list(range(10)), help="classes to sample")
    add("--test", default=REAL, metavar="FILE|CLASS", help="real images: a labelled file or a dotted dataset class")
    add("--test_args", nargs="*", metavar="KEY:VALUE", help=f"its arguments; {REAL} gets split:test without them")
    add_sampling_flags(parser)
    add("--seed", type=seed, default=0, help="seed of the samples; the held-out ones use the next")
    add("--models", nargs="+", default=["logreg", "mlp", "cnn"], help="classifiers to train")
    add("--protocol", default="dp-ldm", help="how they are trained and the epoch is chosen, by a published name")
    add("--epochs", type=int, help="passes through the training samples, instead of the protocol's")
    add("--seeds", type=int, default=1, help="how many times to repeat the classifiers, with seeds 0, 1, ...")
    add("--output", metavar="FILE.json", help="write all numbers, with the curve of every run")
    add_download_flag(parser)
    add_device_flag(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, sample a training and a held-out set, train, and score on real images."""
    args = _parser().parse_args(argv)

    from ldm.errors import UserError
    from ldm.evaluation.classifiers.downstream import downstream_accuracy, format_accuracies
    from ldm.evaluation.classifiers.downstream_files import headline, write_scores
    from ldm.evaluation.classifiers.networks import classifier_name
    from ldm.evaluation.classifiers.protocols import HELD_OUT, protocol_named
    from ldm.evaluation.inputs.sources import load_labelled
    from ldm.inference import check_output, draw_samples, image_side, load_model

    # check everything that may fail before hours of sampling
    if args.output:
        check_output(args.output, (".json",))
    for name in args.models:
        classifier_name(name)
    for flag in ("num_train", "num_eval", "epochs", "seeds"):
        if getattr(args, flag) is not None and getattr(args, flag) < 1:
            raise UserError(f"--{flag} {getattr(args, flag)}: give a number of 1 or more")
    protocol = protocol_named(args.protocol).changed(epochs=args.epochs)
    options = sampling_options(args)
    device = pick_device(args.device)
    model = load_model(args.yaml, args.ckpt, device, args.ema)
    settings = args.test_args if args.test_args is not None else ["split:test"] if args.test == REAL else []
    test = load_labelled(args.test, settings, size=image_side(model))
    train, held_out = draw_samples(model, args.num_train, replace(options, seed=args.seed), args.classes), None
    if protocol.selection == HELD_OUT:
        held_out = draw_samples(model, args.num_eval, replace(options, seed=args.seed + 1), args.classes)
    scores = downstream_accuracy(
        train,
        test,
        held_out=held_out,
        classifiers=args.models,
        protocol=protocol,
        seeds=range(args.seeds),
        device=device,
    )
    print(headline(len(test), protocol, held_out))
    print(format_accuracies(scores))
    if args.output:
        write_scores(scores, args.output)
        print_end(
            args.output,
            f"dp-ldm sample --yaml {typed(args.yaml)} --ckpt {typed(args.ckpt)} --output samples.png",
        )


if __name__ == "__main__":
    run(main)
