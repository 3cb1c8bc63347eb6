"""Accuracy on real CIFAR-10 images of a small CNN trained on samples, as in the DP-LoRA study.

python scripts/cifar_downstream.py --train samples.pt
python scripts/cifar_downstream.py --train samples.pt --selection best-test-epoch     (as published)
"""

from __future__ import annotations

from collections.abc import Sequence

from ldm.cli import ArgumentParser, pick_device, run


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--train", default="samples.pt", metavar="FILE", help="generated images with labels (.pt or .npz)")
    add("--test", default="ldm.data.cifar10.CIFAR10Val", metavar="FILE|CLASS", help="real images with labels")
    add("--test_args", nargs="*", default=[], metavar="KEY:VALUE", help="arguments of the dataset class")
    add("--val", metavar="FILE", help="held-out generated images; without it one sixth of --train is held out")
    add("--selection", default="held-out", help="epoch that counts: held-out, last, best-test-epoch as published")
    add("--models", nargs="+", default=["cnn"], help="classifiers to train")
    add("--epochs", type=int, default=200, help="passes through the samples")
    add("--batch_size", type=int, default=1024, help="images a step")
    add("--lr", type=float, default=1e-3, help="learning rate of Adam")
    add("--seeds", type=int, default=1, help="how many times to repeat, with seeds 0, 1, ...")
    add("--amp", action="store_true", help="compute in bfloat16 where that is safe")
    add("--output", metavar="FILE.json", help="write all numbers, with the curve of every run")
    add("--device", help="cpu, cuda, cuda:1 ...; a GPU when there is one")
    args = parser.parse_args(argv)

    from ldm.evaluation.classifiers.downstream_files import score_files
    from ldm.evaluation.classifiers.protocols import protocol_named

    protocol = protocol_named("dp-lora").changed(
        selection=args.selection, epochs=args.epochs, batch_size=args.batch_size, lr=args.lr
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
