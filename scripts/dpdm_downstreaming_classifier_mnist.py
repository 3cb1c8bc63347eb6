"""Downstream accuracy: train classifiers on generated pictures and score them on real ones.

python scripts/dpdm_downstreaming_classifier_mnist.py --train generated.pt --test real_test.pt
python scripts/dpdm_downstreaming_classifier_mnist.py --train generated.pt --test ldm.data.mnist.MNISTVal
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ldm.cli import ArgumentParser, pick_device, run


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--train", required=True, metavar="FILE", help="generated pictures with labels (.pt or .npz)")
    add("--test", required=True, metavar="FILE|CLASS", help="real pictures: a labelled file or a dotted dataset class")
    add("--test_args", nargs="*", default=[], metavar="KEY:VALUE", help="its arguments; size as --train unless given")
    add("--val", metavar="FILE", help="held-out generated pictures; without it one sixth of --train is held out")
    add("--models", nargs="+", default=["logreg", "mlp", "cnn"], help="classifiers to train")
    add("--epochs", type=int, default=50, help="passes through the training pictures")
    add("--batch_size", type=int, default=128, help="pictures a step")
    add("--lr", type=float, default=3e-4, help="learning rate of Adam")
    add("--seeds", type=int, default=1, help="how many times to repeat, with seeds 0, 1, ...")
    add("--augment", action="store_true", help="shift and rotate training pictures a little")
    add("--amp", action="store_true", help="compute in bfloat16 where that is safe")
    add("--output", metavar="FILE.json", help="write all numbers, with the curve of every run")
    add("--device", help="cpu, cuda, cuda:1 ...; a GPU when there is one")
    args = parser.parse_args(argv)

    from ldm.checkpoint import write_atomic
    from ldm.evaluation.downstream import format_scores, hold_out, score_samples
    from ldm.evaluation.sources import load_labelled, require_writable
    from ldm.samples import SampleSet

    if args.output:
        require_writable(args.output)
    train = SampleSet.load(args.train, need_labels=True)
    train, held_out = (train, SampleSet.load(args.val, need_labels=True)) if args.val else hold_out(train)
    test = load_labelled(args.test, args.test_args, size=train.images.shape[-1])
    scores = score_samples(
        train,
        held_out,
        test,
        args.models,
        seeds=range(args.seeds),
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=args.lr,
        device=pick_device(args.device),
        augment=args.augment,
        amp=args.amp,
    )
    print(f"accuracy on {len(test)} real pictures, epoch chosen on {len(held_out)} held-out samples")
    print(format_scores(scores))
    if args.output:
        text = json.dumps({model: summary.to_dict() for model, summary in scores.items()}, indent=2)
        write_atomic(args.output, lambda path: path.write_text(text))


if __name__ == "__main__":
    run(main)
