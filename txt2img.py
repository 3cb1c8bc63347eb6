"""Sample images of captions: a .pt file, its captions in the meta entry, and a .png grid of the first hundred.

python txt2img.py --yaml config.yaml --ckpt last.ckpt --prompt "A smiling woman with blond hair" --n_samples 4
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.cli import ArgumentParser, pick_device, run, seed

PUBLISHED_PROMPTS = "celeba_inputcaption.txt"  # what the published command reads when no captions are given
SHOWN = 100


def main() -> None:
    """Parse the command line and sample."""
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--yaml", "-y", required=True, help="configuration the model was trained with")
    add("--ckpt", "-ckpt", required=True, help="checkpoint (.ckpt or .safetensors)")
    add("--prompt", nargs="+", metavar="TEXT", help="captions, each in quotes")
    add("--prompts", metavar="FILE", help=f"captions, one a line; without --prompt default {PUBLISHED_PROMPTS}")
    add("--outdir", default="outputs/txt2img-samples", help="folder of the results")
    add(
        "--outname",
        default="samples.pt",
        help="name of the result; the grid ends in .png; the same command goes on if stopped",
    )
    add("--n_samples", type=int, default=5000, help="images a round; captions are used over and over in order")
    add("--n_iter", type=int, default=1, help="rounds")
    add("--ddim_steps", type=int, default=200)
    add("--ddim_eta", type=float, default=0.0, help="0 deterministic, 1 ancestral noise")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--plms", action="store_true", help="sample with PLMS instead of DDIM; needs --ddim_eta 0")
    kind.add_argument("--dpm_solver", action="store_true", help="sample with DPM-Solver++; 20 steps do")
    add("--scale", type=float, default=5.0, help="guidance scale against the empty caption; 1 is none")
    add("--H", type=int, default=None, help="height in pixels; default: that of the model (256 for the published one)")
    add("--W", type=int, default=None, help="width in pixels; default: that of the model")
    add("--bs", type=int, default=300, help="images sampled at a time")
    add("--decoder_batch_size", type=int, default=None, help="images decoded at a time")
    add("--seed", type=seed, default=0)
    add("--device", default=None, help="cpu, cuda, cuda:1; default: a GPU if there is one")
    add("--ema", action=argparse.BooleanOptionalAction, default=True, help="use the averaged weights if there are any")
    args = parser.parse_args()
    if args.prompt and args.prompts:
        parser.error("--prompt and --prompts were both given; give one of them")

    from ldm.errors import UserError
    from ldm.inference import SamplingOptions, check_output, cycled, read_prompts, write_samples
    from ldm.samples import first_images, save_grid

    output = check_output(Path(args.outdir) / args.outname, (".pt",))
    for flag in ("n_samples", "n_iter"):
        if getattr(args, flag) < 1:
            raise UserError(f"--{flag} {getattr(args, flag)}: give 1 or more")
    prompts = args.prompt or read_prompts(args.prompts or PUBLISHED_PROMPTS)
    options = SamplingOptions(
        steps=args.ddim_steps,
        eta=args.ddim_eta,
        scale=args.scale,
        batch_size=args.bs,
        decoder_batch_size=args.decoder_batch_size,
        seed=args.seed,
        sampler="plms" if args.plms else "dpm" if args.dpm_solver else "ddim",
        height=args.H,
        width=args.W,
    )
    captions = cycled(prompts, args.n_samples) * args.n_iter  # every round begins with the first caption
    device = pick_device(args.device)
    count = len(captions)
    write_samples(output, args.yaml, args.ckpt, count, options, prompts=captions, device=device, ema=args.ema)
    save_grid(first_images(output, SHOWN), output.with_suffix(".png"), columns=10)


if __name__ == "__main__":
    run(main)
