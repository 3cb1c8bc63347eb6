"""Fetch CelebA-HQ (256x256, 28,000 + 2,000 faces with the label "Male") and unpack it for `ldm.data.celebahq.CelebAHQ`.

python scripts/extract_celeba_hq.py
python scripts/extract_celeba_hq.py --from FOLDER_WITH_PARQUET_FILES --root ~/.cache/CelebAHQ
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ldm.cli import ArgumentParser, print_end, run


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line, fetch missing files, and write the folder."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--root", help="folder to write to; default CelebAHQ in $LDM_DATA_ROOT or in the cache folder (~/.cache)")
    add("--from", dest="source", metavar="DIR", help="folder with the Parquet files; nothing is downloaded then")
    add("--male", type=int, choices=(0, 1), help="the label that means a man; default what the files say, else 1")
    add("--overwrite", action="store_true", help="delete images in the folder that come from other files")
    args = parser.parse_args(argv)

    from ldm.data.base import data_root
    from ldm.data.celebahq_files import REPOSITORY, extract, parquet_files
    from ldm.data.formats.hub_download import fetch_parquet

    root = data_root(args.root) if args.root else data_root() / "CelebAHQ"
    if args.source:
        files = parquet_files(Path(os.path.expandvars(args.source)).expanduser())
    else:
        files = fetch_parquet(REPOSITORY, root / "dataset")
    counts = extract(files, root, male=args.male, overwrite=args.overwrite)
    print_end(
        f"{root}: {counts['train']:,} train and {counts['test']:,} test images",
        "dp-ldm train configs/finetuning/celebahq-dp-eps10.yaml --dry-run",
    )


if __name__ == "__main__":
    run(main)
