"""Quantiles of per-record gradient norms on PUBLIC images: a clipping norm chosen by them costs no privacy."""

from __future__ import annotations

from ldm.cli import ArgumentParser, pick_device, run
from ldm.reports.flags import add_download_flag


def main() -> None:
    """Parse the command line and print a table."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--yaml", required=True, help="private fine-tuning configuration")
    add("--ckpt", required=True, help="checkpoint that the fine-tuning starts from")
    add("--dataset", default="ldm.data.glyphs.GlyphsTrain", help="dotted name of a PUBLIC data set")
    add("--args", nargs="*", default=[], metavar="KEY:VALUE", help="its arguments, such as count:2000 classes:digits")
    add("--records", type=int, default=512, help="how many public records to look at")
    add("--copies", type=int, default=1, help="noise draws a record, as dp_config.noise_multiplicity")
    add("--device", default=None, help="cpu, cuda, cuda:1; default: a GPU if there is one")
    add_download_flag(parser)
    args = parser.parse_args()

    from ldm.evaluation.inputs.sources import open_dataset, parse_settings
    from ldm.reports.gradient_norms import record_norms, starting_model

    model = starting_model(args.yaml, args.ckpt, pick_device(args.device))
    norms = record_norms(model, open_dataset(args.dataset, parse_settings(args.args)), args.records, args.copies)
    print(f"gradient norms of {len(norms)} public records, {args.copies} noise draws each")
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        print(f"  {share:4.0%} quantile  {float(norms.quantile(share)):.4g}")


if __name__ == "__main__":
    run(main)
