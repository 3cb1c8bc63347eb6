"""Sample from a model conditioned on captions, or on classes: a .pt file, or a .png grid."""

from __future__ import annotations

import argparse

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
        required=True,
        help="samples.pt, which the same command goes on with if it was stopped, or samples.png for a grid",
    )
    add("--num_samples", "-n", type=int, default=20, help="images in all, of the captions in turn or class by class")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", nargs="+", metavar="TEXT", help="captions, each in quotes")
    what.add_argument("--prompts", metavar="FILE", help="captions, one a line")
    what.add_argument("--classes", "-c", nargs="+", type=int, help="classes, for a model of classes")
    add("--batch_size", "-bs", type=int, default=500)
    add("--decoder_batch_size", type=int, default=None, help="images decoded at a time")
    add("--ddim_steps", type=int, default=200)
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--plms", action="store_true", help="sample with PLMS instead of DDIM")
    kind.add_argument("--dpm_solver", action="store_true", help="sample with DPM-Solver++; 20 steps do")
    add("--eta", type=float, default=None, help="0 deterministic, 1 ancestral noise; default: 1; 0 unless DDIM")
    add("--uc", type=int, default=None, help="class that stands for no condition in guidance; default: the null class")
    add("--uc_scale", type=float, default=1.0, help="guidance scale; 1 is none")
    add("--seed", type=seed, default=0)
    add("--device", default=None, help="cpu, cuda, cuda:1; default: a GPU if there is one")
    add("--ema", action=argparse.BooleanOptionalAction, default=True, help="use the averaged weights if there are any")
    args = parser.parse_args()

    from ldm.inference import SamplingOptions, check_output, read_prompts, sample_set, write_samples
    from ldm.samples import save_grid

    output = check_output(args.output)
    sampler = "plms" if args.plms else "dpm" if args.dpm_solver else "ddim"
    eta = args.eta if args.eta is not None else 1.0 if sampler == "ddim" else 0.0
    options = SamplingOptions(
        steps=args.ddim_steps,
        eta=eta,
        scale=args.uc_scale,
        uncond_class=args.uc,
        batch_size=args.batch_size,
        decoder_batch_size=args.decoder_batch_size,
        seed=args.seed,
        sampler=sampler,
    )
    prompts = args.prompt if args.prompts is None else read_prompts(args.prompts)
    device = pick_device(args.device)
    files, count = (args.yaml, args.ckpt), args.num_samples
    condition = {"classes": args.classes, "prompts": prompts}
    if output.suffix == ".png":
        samples = sample_set(*files, count, options, **condition, device=device, ema=args.ema)
        kinds = len(args.classes or prompts or ())
        save_grid(samples.images, output, columns=kinds if prompts else max(1, round(count / kinds)))
    else:
        write_samples(output, *files, count, options, **condition, device=device, ema=args.ema)


if __name__ == "__main__":
    run(main)
