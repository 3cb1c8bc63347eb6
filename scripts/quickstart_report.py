"""Score the quickstart's private model beside its baselines; write a table, an image grid and curves."""

from __future__ import annotations

from pathlib import Path

from ldm.cli import ArgumentParser, pick_device, print_end, run
from ldm.reports.flags import add_device_flag, add_sampling_flags, sampling_options


def main() -> None:
    """Parse the command line and report."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--yaml", required=True, help="configuration of the models")
    add("--public", required=True, help="checkpoint of the public model")
    add("--private", required=True, help="run directory of the private fine-tuning")
    add("--plain", required=True, help="run directory of the same fine-tuning without privacy")
    add("--output", default="outputs/quickstart", help="folder of the report")
    add("--num_samples", type=int, default=1000, help="samples a seed")
    add("--epochs", type=int, default=15, help="epochs of every classifier")
    add("--seeds", type=int, default=3, help="how often every row is measured")
    add_sampling_flags(parser, batch_size=250, guidance=2.0)
    parser.set_defaults(steps=20)  # with which results/quickstart.md was measured
    add("--public_count", type=int, default=6000, help="public images")
    add_device_flag(parser)
    args = parser.parse_args()

    from ldm.data.glyphs import GlyphsTrain
    from ldm.data.mnist import MNIST5kTrain, MNIST5kVal
    from ldm.reports.quickstart import ReportOptions, report

    options = ReportOptions(
        samples=args.num_samples,
        epochs=args.epochs,
        seeds=tuple(range(args.seeds)),
        sampling=sampling_options(args),
    )
    print(
        report(
            args.yaml,
            args.public,
            args.private,
            args.plain,
            args.output,
            public=GlyphsTrain(count=args.public_count, classes="digits"),
            real=MNIST5kTrain(),
            held_out=MNIST5kVal(),
            options=options,
            device=pick_device(args.device),
        )
    )
    images = Path(args.output) / "samples.png"
    print_end(f"{args.output}: results.json, results.txt, samples.png, curves.png", f"look at {images}")


if __name__ == "__main__":
    run(main)
