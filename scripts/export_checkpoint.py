"""Turn a training checkpoint into a small .safetensors file for sampling and fine-tuning."""

from __future__ import annotations

import argparse

from ldm.cli import ArgumentParser, print_end, run, typed


def main() -> None:
    """Parse the command line and convert."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--ckpt", required=True, help="Lightning checkpoint")
    parser.add_argument("--output", "-o", required=True, help="file to write, .safetensors")
    parser.add_argument("--ema", action=argparse.BooleanOptionalAction, default=True, help="take the averaged weights")
    parser.add_argument("--note", default="", help="kept in the file: how the weights were made")
    parser.add_argument(
        "--decoder", metavar="FILE", help="autoencoder whose decoder replaces the diffusion model's own"
    )
    parser.add_argument("--half", action="store_true", help="weights in half precision: a file of half the size")
    args = parser.parse_args()

    from ldm.checkpoint import export_checkpoint

    count = export_checkpoint(args.ckpt, args.output, args.ema, args.note, args.decoder, args.half)
    print_end(
        f"{args.output}: {count:,} values",
        f"dp-ldm sample --yaml YAML --ckpt {typed(args.output)} --output samples.png",
        f"dp-ldm train YAML {typed(f'model.params.ckpt_path={args.output}')}",
    )


if __name__ == "__main__":
    run(main)
