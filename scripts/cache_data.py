"""Write a data set, decoded and resized, into one file that ldm.data.in_memory_dataset.InMemoryDataset reads.

python scripts/cache_data.py --dataset ldm.data.celeba.CelebATrain --params size:32 --output celeba32.pt
"""

from __future__ import annotations

from collections.abc import Sequence

from ldm.cli import ArgumentParser, print_end, run
from ldm.reports.flags import add_download_flag


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and write the file."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--dataset", required=True, help="dotted name of a dataset class, such as ldm.data.mnist.MNISTTrain")
    add("--params", nargs="*", default=[], metavar="KEY:VALUE", help="its arguments, such as size:32 split:test")
    add("--batch_size", type=int, default=256, help="items that a loader process hands over at a time")
    add("--num_workers", type=int, default=0, help="loader processes; 0 reads in this one")
    add("--output", "-o", required=True, metavar="FILE.pt", help="file to write: the stacked fields of the items")
    add("--uint8", action="store_true", help="store images as 8-bit levels: a quarter of the room, the same items")
    add_download_flag(parser)
    args = parser.parse_args(argv)

    from ldm.data.in_memory_dataset import cache_dataset
    from ldm.evaluation.inputs.sources import open_dataset, parse_settings
    from ldm.inference import check_output

    output = check_output(args.output, (".pt",))
    dataset = open_dataset(args.dataset, parse_settings(args.params))
    count = cache_dataset(
        dataset, output, batch_size=args.batch_size, num_workers=args.num_workers, as_bytes=args.uint8
    )
    print_end(
        f"{output}: {count} items of {args.dataset}",
        f"in a YAML file, target: ldm.data.in_memory_dataset.InMemoryDataset, params: {{path: {output}}}",
    )


if __name__ == "__main__":
    run(main)
