"""Does a fine-tuned model betray who trained it? Loss-based membership inference beside what (epsilon, delta) allows.

python scripts/membership.py --yaml finetune.yaml --ckpt last.ckpt --card privacy.json \
    --members ldm.data.mnist.MNISTTrain --held_out ldm.data.mnist.MNISTVal
The figures are computed from private images, and no guarantee covers them: show them to the images' holders only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from ldm.cli import ArgumentParser, pick_device, print_end, run, seed
from ldm.reports.flags import add_dataset_flags, add_device_flag, add_model_flags


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add_model_flags(parser)
    kinds = {"required": True, "metavar": "CLASS|FILE"}
    add_dataset_flags(parser, "members", "private images that it was fine-tuned on", **kinds)
    add_dataset_flags(parser, "held_out", "images of the same kind that it never saw", **kinds)
    add("--reference_ckpt", metavar="FILE", help="model that saw neither, such as the public one: a stronger attack")
    add("--reference_yaml", metavar="FILE", help="its configuration, if another one")
    add("--card", metavar="privacy.json", help="card of the run, for epsilon and delta")
    add("--epsilon", type=float, help="epsilon, without a card")
    add("--delta", type=float, help="delta, without a card")
    add("--draws", type=int, default=16, help="timesteps and noises of an image, the same for all")
    add("--count", type=int, default=1000, help="images of each set, chosen at random")
    add("--batch_size", "-bs", type=int, default=64, help="images at a time")
    add("--seed", type=seed, default=0, help="choice of images, and noises")
    add("--plot", metavar="FILE.png", help="draw the curves")
    add("--output", metavar="FILE.json", help="write all numbers")
    add_device_flag(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, attack, write and print."""
    args = _parser().parse_args(argv)

    from ldm.errors import UserError
    from ldm.evaluation.leakage.membership import draw_roc
    from ldm.files import write_text
    from ldm.inference import check_output
    from ldm.reports.membership import LossOptions, infer_membership, open_records
    from ldm.reports.privacy_summary import budget_of

    for path, suffix in ((args.plot, ".png"), (args.output, ".json")):
        if path:
            check_output(path, (suffix,))
    if (args.epsilon is None) != (args.delta is None):
        raise UserError("--epsilon and --delta belong together; give both, or --card")
    budget = budget_of(args.card) if args.card else None
    if budget is None and args.epsilon is not None:
        budget = (args.epsilon, args.delta)
    results = infer_membership(
        args.yaml,
        args.ckpt,
        open_records(args.members, args.members_args),
        open_records(args.held_out, args.held_out_args),
        LossOptions(args.draws, args.count, args.batch_size, args.seed),
        reference=(args.reference_yaml or args.yaml, args.reference_ckpt) if args.reference_ckpt else None,
        budget=budget,
        device=pick_device(args.device),
        ema=args.ema,
    )
    print(f"{results[0].members} members, {results[0].held_out} held-out images; {results[0].warning}")
    for result in results:
        print(result)
    if args.plot:
        draw_roc(results, args.plot)
    if args.output:
        write_text(args.output, json.dumps([result.to_dict() for result in results], indent=2))
    written = [path for path in (args.plot, args.output) if path]
    if written:
        print_end(", ".join(written), "dp-ldm audit RUN measures what the run leaks without a private image")


if __name__ == "__main__":
    run(main)
