"""Train the digits-cnn feature extractor on public labelled images, for --extractor digits-cnn --weights FILE.

python fid/train_digits_cnn.py --dataset ldm.data.glyphs.GlyphsTrain --args size:32 --output digits_cnn.safetensors
"""

from __future__ import annotations

from collections.abc import Sequence

from ldm.cli import ArgumentParser, pick_device, print_end, run, seed, typed
from ldm.reports.flags import add_device_flag, add_download_flag


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, train, and write the weights."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--dataset", required=True, help="public images: dotted name of a dataset class, or a labelled sample file")
    add("--args", nargs="*", default=[], metavar="KEY:VALUE", help="arguments of the dataset class, such as size:32")
    add("--output", required=True, metavar="FILE.safetensors", help="weight file to write")
    add("--epochs", type=int, default=10, help="passes through the images")
    add("--lr", type=float, default=1e-3, help="learning rate of Adam")
    add("--seed", type=seed, default=0, help="initial weights, order and augmentation")
    add_device_flag(parser)
    add_download_flag(parser)
    args = parser.parse_args(argv)

    from ldm.evaluation.features.digits import DigitFeatures
    from ldm.evaluation.inputs.sources import load_labelled
    from ldm.files import require_writable

    require_writable(args.output)
    public = load_labelled(args.dataset, args.args, for_scores=False)
    device = pick_device(args.device)
    extractor = DigitFeatures.fit(public, epochs=args.epochs, lr=args.lr, seed=args.seed, device=device)
    extractor.save(args.output)
    print_end(
        f"{args.output}: digits-cnn {extractor.weights} trained on {len(public)} images",
        f"dp-ldm evaluate --samples SAMPLES --real FOLDER --extractor digits-cnn --weights {typed(args.output)}",
    )


if __name__ == "__main__":
    run(main)
