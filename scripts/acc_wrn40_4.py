"""Accuracy on real CIFAR-10 images of a WRN-40-4 trained on samples (.npz with x (N, H, W, C) and y, or .pt).

python scripts/acc_wrn40_4.py samples.npz
python scripts/acc_wrn40_4.py samples.npz --test real_test.pt --seeds 3 --output wrn.json
"""

from __future__ import annotations

from collections.abc import Sequence

from ldm.cli import ArgumentParser, pick_device, run


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("data", nargs="?", default="samples.npz", metavar="FILE", help="generated images with labels")
    add("--test", default="ldm.data.cifar10.CIFAR10Val", metavar="FILE|CLASS", help="real images with labels")
    add("--test_args", nargs="*", default=[], metavar="KEY:VALUE", help="arguments of the dataset class")
    add("--selection", default="last", help="epoch that counts: last as published, held-out, best-test-epoch")
    add("--epochs", type=int, default=10, help="passes through the samples")
    add("--batch_size", type=int, default=1000, help="images a step")
    add("--lr", type=float, default=0.1, help="learning rate of SGD with Nesterov momentum")
    add("--seeds", type=int, default=1, help="how many times to repeat, with seeds 0, 1, ...")
    add("--amp", action="store_true", help="compute in bfloat16 where that is safe")
    add("--output", metavar="FILE.json", help="write all numbers, with the curve of every run")
    add("--device", help="cpu, cuda, cuda:1 ...; a GPU when there is one")
    args = parser.parse_args(argv)

    from ldm.evaluation.classifiers.downstream_files import score_files
    from ldm.evaluation.classifiers.protocols import protocol_named

    protocol = protocol_named("wrn40-4").changed(
        selection=args.selection, epochs=args.epochs, batch_size=args.batch_size, lr=args.lr
    )
    print(
        score_files(
            args.data,
            args.test,
            protocol,
            ["wrn-40-4"],
            test_args=args.test_args,
            seeds=range(args.seeds),
            device=pick_device(args.device),
            amp=args.amp,
            output=args.output,
        )
    )


if __name__ == "__main__":
    run(main)
