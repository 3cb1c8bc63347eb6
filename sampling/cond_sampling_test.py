"""Sample a class-conditional model into conditional_mnist_samples.pt and a grid, as the published command does."""

from __future__ import annotations

import argparse

from ldm.cli import ArgumentParser, pick_device, run, seed


def main() -> None:
    """Parse the command line and sample."""
    parser = ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("-y", "--yaml", required=True, help="configuration the model was trained with")
    add("-ckpt", "--ckpt_path", "--ckpt", required=True, help="checkpoint (.ckpt or .safetensors)")
    add("-c", "--classes", nargs="+", type=int, default=list(range(10)), help="classes to sample")
    add("-n", "--num_samples", type=int, default=20, help="images in all, class by class")
    add("-step", "--ddim_step", type=int, default=200)
    add("-eta", "--eta", type=float, default=1.0, help="0 deterministic, 1 ancestral noise")
    add("-scale", "--scale", type=float, default=1.0, help="guidance scale; 1 is none")
    add("--uc", type=int, default=None, help="class that stands for no condition in guidance; default: the null class")
    add("-bs", "--batch_size", type=int, default=500)
    add("-o", "--output", default="conditional_mnist_samples.pt", help="the same command goes on if it was stopped")
    add("--picture", default="test_class_cond.jpg", help="grid of the samples")
    add("--seed", type=seed, default=0)
    add("--device", default=None, help="cpu, cuda, cuda:1; default: a GPU if there is one")
    add("--ema", action=argparse.BooleanOptionalAction, default=True, help="use the averaged weights if there are any")
    args = parser.parse_args()

    from ldm.inference import SamplingOptions, check_output, write_samples
    from ldm.samples import first_images, save_grid

    output = check_output(args.output, (".pt",))
    image = check_output(args.picture, (".jpg", ".jpeg", ".png"))
    options = SamplingOptions(
        steps=args.ddim_step,
        eta=args.eta,
        scale=args.scale,
        uncond_class=args.uc,
        batch_size=args.batch_size,
        seed=args.seed,
    )
    device = pick_device(args.device)
    files, count = (args.yaml, args.ckpt_path), args.num_samples
    write_samples(output, *files, count, options, classes=args.classes, device=device, ema=args.ema)
    save_grid(first_images(output, 100), image, columns=10)


if __name__ == "__main__":
    run(main)
