"""Sample images of captions: a .pt file, its captions in the meta entry, and a .png grid of the first hundred.

python txt2img.py --yaml config.yaml --ckpt last.ckpt --prompt "A smiling woman with blond hair" --n_samples 4
"""

from __future__ import annotations

from pathlib import Path

from ldm.cli import ArgumentParser, run
from ldm.commands.sample import print_sampled
from ldm.errors import UserError
from ldm.inference import SamplingRequest, check_output, cycled, read_prompts
from ldm.reports.flags import add_drawing_flags, add_sampling_flags, sampling_options
from ldm.samples.shards import Shard

PUBLISHED_PROMPTS = "celeba_inputcaption.txt"  # what the published command reads when no captions are given


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
    # the published command is deterministic: DDIM without noise, which UniPC follows as closely in a tenth of the steps
    add_sampling_flags(parser, batch_size=300, guidance=5.0, sampler="unipc")
    add("--H", type=int, default=None, help="height in pixels; default: that of the model (256 for the published one)")
    add("--W", type=int, default=None, help="width in pixels; default: that of the model")
    add_drawing_flags(parser)
    args = parser.parse_args()
    if args.prompt and args.prompts:
        parser.error("--prompt and --prompts were both given; give one of them")

    for flag in ("n_samples", "n_iter"):
        if getattr(args, flag) < 1:
            raise UserError(f"--{flag} {getattr(args, flag)}: give 1 or more")
    output = check_output(Path(args.outdir) / args.outname, (".pt",))
    prompts = args.prompt or read_prompts(args.prompts or PUBLISHED_PROMPTS)
    captions = cycled(prompts, args.n_samples) * args.n_iter  # every round begins with the first caption
    if args.sampler == "ddim" and args.eta is None:
        args.eta = 0.0  # as in the published command
    options = sampling_options(args, lineage_eta=0.0, height=args.H, width=args.W)
    complete = SamplingRequest(
        output=output,
        config=args.yaml,
        checkpoint=args.ckpt,
        count=len(captions),
        options=options,
        prompts=captions,
        picture=output.with_suffix(".png"),
        device=args.device,
        ema=args.ema,
        guide=args.guide_with,
        shard=Shard.here(args.shard),
    ).run()
    print_sampled(output, len(captions), complete, output.with_suffix(".png"))


if __name__ == "__main__":
    run(main)
