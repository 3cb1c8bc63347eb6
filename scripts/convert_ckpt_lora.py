"""Rename the adapters of a checkpoint for another code base, change their rank, or take them out on their own.

python scripts/convert_ckpt_lora.py --ckpt dplora.ckpt --to plain -o ours.safetensors
python scripts/convert_ckpt_lora.py --ckpt last.ckpt --to adapter -o adapter.safetensors
python scripts/convert_ckpt_lora.py public.ckpt for_dpldm.ckpt
"""

from __future__ import annotations

import argparse

from ldm.cli import ArgumentParser, print_end, run, typed

STYLES = ("plain", "peft", "loralib")  # those of ldm.checkpoint.lora_names, which imports torch


def main() -> None:
    """Parse the command line and convert."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", metavar="IN OUT", help="checkpoint and file to write, as DP-LDM has it")
    parser.add_argument("--ckpt", help="checkpoint, in the names of any lineage; a folder that PEFT saved")
    parser.add_argument("--output", "-o", help="file to write, .safetensors or .ckpt")
    parser.add_argument(
        "--to",
        default=None,
        choices=(*STYLES, "adapter"),
        help="plain: this project; peft: DP-LoRA; loralib: DP-LDM; adapter: what was trained, alone, in plain names",
    )
    parser.add_argument("--adapt-rank", type=int, metavar="R", help="add zeros to, or cut, the adapters to this rank")
    parser.add_argument("--ema", action=argparse.BooleanOptionalAction, default=True, help="averages, for --to adapter")
    parser.add_argument("--alpha", type=float, help="alpha of the adapters, for a file that does not say it")
    args = parser.parse_args()

    from ldm.checkpoint.adapters import convert_checkpoint, export_adapter

    if args.files:
        if len(args.files) != 2 or args.ckpt or args.output:
            parser.error("give the checkpoint and the file to write either as IN OUT or as --ckpt IN --output OUT")
        args.ckpt, args.output = args.files
        args.to = args.to or "loralib"
    for flag, value in (("--ckpt", args.ckpt), ("--output", args.output), ("--to", args.to)):
        if not value:
            parser.error(f"the following arguments are required: {flag}")
    if args.to == "adapter":
        if args.adapt_rank is not None:
            parser.error("--adapt-rank goes with a naming style; change the rank first, then take the adapters out")
        count = export_adapter(args.ckpt, args.output, args.ema, args.alpha)
        following = f"python scripts/merge_lora.py --ckpt {typed(args.output)} --base MODEL -o merged.safetensors"
    else:
        count = convert_checkpoint(args.ckpt, args.output, args.to, args.adapt_rank, args.alpha)
        following = f"dp-ldm sample --yaml YAML --ckpt {typed(args.output)} --output samples.png"
    print_end(f"{args.output}: {count:,} values", following)


if __name__ == "__main__":
    run(main)
