"""Per-record gradient norms on PUBLIC images: a clipping norm or loss weights chosen by them cost no privacy."""

from __future__ import annotations

from ldm.cli import ArgumentParser, pick_device, run
from ldm.reports.flags import add_device_flag, add_download_flag


def main() -> None:
    """Parse the command line and print a table."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--yaml", required=True, help="private fine-tuning configuration")
    add("--ckpt", required=True, help="checkpoint that the fine-tuning starts from")
    add("--dataset", default="ldm.data.glyphs.GlyphsTrain", help="dotted name of a PUBLIC data set")
    add("--args", nargs="*", default=[], metavar="KEY:VALUE", help="its arguments, such as count:2000 classes:digits")
    add("--records", type=int, default=512, help="how many public records to look at")
    add("--noise_multiplicity", "--copies", type=int, default=1, help="noise draws a record, as in dp_config")
    add("--by_timestep", action="store_true", help="medians by timestep, and the loss weights that make them equal")
    add_device_flag(parser)
    add_download_flag(parser)
    args = parser.parse_args()

    from ldm.evaluation.inputs.sources import open_dataset, parse_settings
    from ldm.reports.gradient_norms import equalizing_weights, medians_by_timestep, record_norms, starting_model

    draws = args.noise_multiplicity
    model = starting_model(args.yaml, args.ckpt, pick_device(args.device))
    dataset = open_dataset(args.dataset, parse_settings(args.args))
    if args.by_timestep:
        medians = medians_by_timestep(model, dataset, args.records, draws)
        print(f"median gradient norms of {args.records} public records by timestep, {draws} noise draws each")
        for step, norm in medians.items():
            print(f"  {step:4d}  {norm:.4g}")
        table = equalizing_weights(medians)
        print("the norms become equal with, under model.params:")
        print(f"  timestep_weights: {{steps: {table['steps']}, values: {table['values']}}}")
        return
    norms = record_norms(model, dataset, args.records, draws)
    print(f"gradient norms of {len(norms)} public records, {draws} noise draws each")
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        print(f"  {share:4.0%} quantile  {float(norms.quantile(share)):.4g}")


if __name__ == "__main__":
    run(main)
