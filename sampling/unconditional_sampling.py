"""Sample from an unconditional model: a .pt file, or a .png grid."""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.cli import ArgumentParser, pick_device, run, seed


def main() -> None:
    """Parse the command line and sample."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--yaml", "-y", required=True, help="configuration the model was trained with")
    add("--ckpt", "-ckpt", required=True, help="checkpoint (.ckpt or .safetensors)")
    add(
        "--output",
        "-o",
        default=None,
        help="default: <config name>_samples.pt here; the same command goes on with it if it was stopped",
    )
    add("--num_samples", "-n", type=int, default=5000)
    add("--batch_size", "-bs", type=int, default=500)
    add("--decoder_batch_size", type=int, default=None, help="images decoded at a time")
    add("--ddim_steps", type=int, default=200)
    add("--ddim_eta", type=float, default=1.0, help="0 deterministic, 1 ancestral noise")
    add("--seed", type=seed, default=None)
    add("--device", default=None, help="cpu, cuda, cuda:1; default: a GPU if there is one")
    add("--ema", action=argparse.BooleanOptionalAction, default=True, help="use the averaged weights if there are any")
    args = parser.parse_args()

    from ldm.inference import SamplingOptions, check_output, sample_set, write_samples
    from ldm.samples import save_grid

    output = check_output(args.output or f"{Path(args.yaml).stem}_samples.pt")
    options = SamplingOptions(
        steps=args.ddim_steps,
        eta=args.ddim_eta,
        batch_size=args.batch_size,
        decoder_batch_size=args.decoder_batch_size,
        seed=args.seed,
    )
    device = pick_device(args.device)
    files, count = (args.yaml, args.ckpt), args.num_samples
    if output.suffix == ".png":
        save_grid(sample_set(*files, count, options, device=device, ema=args.ema).images[:100], output, columns=10)
    else:
        write_samples(output, *files, count, options, device=device, ema=args.ema)


if __name__ == "__main__":
    run(main)
