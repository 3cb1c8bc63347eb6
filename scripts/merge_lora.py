"""Fold adapters into the weights they stand beside: a plain checkpoint that computes the same.

python scripts/merge_lora.py --ckpt logs/RUN/checkpoints/last.ckpt -o merged.safetensors
python scripts/merge_lora.py --ckpt adapter.safetensors --base public.ckpt -o merged.safetensors
"""

from __future__ import annotations

import argparse

from ldm.cli import ArgumentParser, print_end, run, typed


def main() -> None:
    """Parse the command line and merge."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", required=True, help="checkpoint with adapters, in the names of any lineage")
    parser.add_argument("--base", help="the model that a file of adapters alone was trained from")
    parser.add_argument("--output", "-o", required=True, help="file to write, .safetensors or .ckpt")
    parser.add_argument("--ema", action=argparse.BooleanOptionalAction, default=True, help="take the averaged adapters")
    parser.add_argument("--alpha", type=float, help="alpha of the adapters, for a file that does not say it")
    args = parser.parse_args()

    from ldm.checkpoint.adapters import merge_checkpoint

    count = merge_checkpoint(args.ckpt, args.output, args.base, args.ema, args.alpha)
    print_end(
        f"{args.output}: {count:,} values, no adapters",
        f"dp-ldm sample --yaml YAML --ckpt {typed(args.output)} --output samples.png  # the YAML file without adapters",
    )


if __name__ == "__main__":
    run(main)
