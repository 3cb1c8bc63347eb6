"""Frechet distance between two statistics files; called FID only for Inception features.

python fid/compute_fid.py --path1 celeba32_train.npz --path2 celeba32_samples.npz
"""

from __future__ import annotations

from collections.abc import Sequence

from ldm.cli import ArgumentParser, run


def main(argv: Sequence[str] | None = None) -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--path1", required=True, metavar="FILE.npz", help="statistics of the real pictures")
    add("--path2", required=True, metavar="FILE.npz", help="statistics of the generated pictures")
    add("--force", action="store_true", help="compare although the features were made differently")
    args = parser.parse_args(argv)

    from ldm.evaluation.statistics import FeatureStatistics, compare, describe

    first, second = FeatureStatistics.load(args.path1), FeatureStatistics.load(args.path2)
    distance = compare(first, second, force=args.force)
    print(f"{describe(first, second)}: {distance:.4f}")


if __name__ == "__main__":
    run(main)
