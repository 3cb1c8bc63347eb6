"""Downstream accuracy: train classifiers on generated images and score them on real ones.

python scripts/dpdm_downstreaming_classifier_mnist.py --train generated.pt --test real_test.pt
python scripts/dpdm_downstreaming_classifier_mnist.py --train generated.pt --test ldm.data.mnist.MNISTVal
"""

from __future__ import annotations

from collections.abc import Sequence

from ldm.cli import ArgumentParser, pick_device, run


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--train", required=True, metavar="FILE", help="generated images with labels (.pt or .npz)")
    add("--test", required=True, metavar="FILE|CLASS", help="real images: a labelled file or a dotted dataset class")
    add("--test_args", nargs="*", default=[], metavar="KEY:VALUE", help="its arguments; size as --train unless given")
    add("--val", metavar="FILE", help="held-out generated images; without it one sixth of --train is held out")
    add("--models", nargs="+", default=["logreg", "mlp", "cnn"], help="classifiers to train")
    add("--protocol", default="dp-ldm", help="how they are trained and the epoch is chosen, by a published name")
    add("--epochs", type=int, help="passes through the training images, instead of the protocol's")
    add("--batch_size", type=int, help="images a step, instead of the protocol's")
    add("--lr", type=float, help="learning rate, instead of the protocol's")
    add("--seeds", type=int, default=1, help="how many times to repeat, with seeds 0, 1, ...")
    add("--augment", action="store_true", help="shift and rotate training images a little")
    add("--amp", action="store_true", help="compute in bfloat16 where that is safe")
    add("--output", metavar="FILE.json", help="write all numbers, with the curve of every run")
    add("--device", help="cpu, cuda, cuda:1 ...; a GPU when there is one")
    args = parser.parse_args(argv)

    from ldm.evaluation.classifiers.downstream_files import score_files
    from ldm.evaluation.classifiers.protocols import protocol_named

    jitter = ("jitter",) if args.augment else None
    protocol = protocol_named(args.protocol).changed(
        epochs=args.epochs, batch_size=args.batch_size, lr=args.lr, augment=jitter
    )
    print(
        score_files(
            args.train,
            args.test,
            protocol,
            args.models,
            test_args=args.test_args,
            held_out=args.val,
            seeds=range(args.seeds),
            device=pick_device(args.device),
            amp=args.amp,
            output=args.output,
        )
    )


if __name__ == "__main__":
    run(main)
