"""Sample from a class-conditional model: a labelled .pt file, or a .png grid."""

from __future__ import annotations

import argparse
import ast

from ldm.cli import ArgumentParser, pick_device, run, seed


def class_list(text: str) -> list[int]:
    """Read one item of --classes: a number, or a list such as "[0, 1, 2]"."""
    try:
        value = ast.literal_eval(text)
        return [int(item) for item in value] if isinstance(value, (list, tuple)) else [int(value)]
    except (ValueError, SyntaxError, TypeError):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no class or list of classes; type 0 1 2 or '[0, 1, 2]'"
        ) from None


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
    add("--num_samples", "-n", type=int, default=20, help="images in all, class by class")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--classes", "-c", nargs="+", type=class_list, default=[[0]], help="classes to sample")
    what.add_argument("--prompt", nargs="+", metavar="TEXT", help="captions, for a model of text")
    add("--batch_size", "-bs", type=int, default=500)
    add("--decoder_batch_size", type=int, default=None, help="images decoded at a time")
    add("--ddim_steps", type=int, default=200)
    add("--eta", type=float, default=1.0, help="0 deterministic, 1 ancestral noise")
    add("--uc", type=int, default=None, help="class that stands for no condition in guidance; default: the null class")
    add("--uc_scale", type=float, default=1.0, help="guidance scale; 1 is none")
    add("--seed", type=seed, default=0)
    add("--device", default=None, help="cpu, cuda, cuda:1; default: a GPU if there is one")
    add("--ema", action=argparse.BooleanOptionalAction, default=True, help="use the averaged weights if there are any")
    args = parser.parse_args()

    from ldm.inference import SamplingOptions, check_output, sample_set, write_samples
    from ldm.samples import save_grid

    output = check_output(args.output)
    options = SamplingOptions(
        steps=args.ddim_steps,
        eta=args.eta,
        scale=args.uc_scale,
        uncond_class=args.uc,
        batch_size=args.batch_size,
        decoder_batch_size=args.decoder_batch_size,
        seed=args.seed,
    )
    classes = None if args.prompt else [label for item in args.classes for label in item]
    condition = {"classes": classes, "prompts": args.prompt}
    device = pick_device(args.device)
    files, count = (args.yaml, args.ckpt), args.num_samples
    if output.suffix == ".png":
        samples = sample_set(*files, count, options, **condition, device=device, ema=args.ema)
        save_grid(samples.images, output, columns=max(1, round(count / max(1, len(classes or args.prompt)))))
    else:
        write_samples(output, *files, count, options, **condition, device=device, ema=args.ema)


if __name__ == "__main__":
    run(main)
